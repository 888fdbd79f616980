"""Small exports to ncnn, and what int8 made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from exporting import export_arguments, export_ncnn
from torch import Tensor

from deploy.ncnn.param import read_param
from deploy.ncnn.runtime import load_ncnn
from deploy.settings import RuntimeOptions
from models.detector import Detector

CPU = torch.device("cpu")
HW = (64, 96)
PARAM, BIN = "model.ncnn.param", "model.ncnn.bin"
HEADS = {"model.9.m.0", "model.9.m.1"}


def pictures(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.rand(1, 3, *HW, generator=generator) for _ in range(count)]


def exported(model: Detector, folder: Path, **settings: Any) -> Path:
    int8 = settings.pop("int8", None)
    calibration = pictures() if settings.get("precision") == "int8" else ()
    export_ncnn(model, folder, calibration=calibration, int8=int8, **export_arguments(model, image_hw=HW, **settings))
    return folder


def heads_of(folder: Path, images: Tensor, *, half: bool = False) -> list[Tensor]:
    return load_ncnn(folder, device=CPU, options=RuntimeOptions(half=half))(images)


def int8_layers(folder: Path) -> set[str]:
    return {layer.name for layer in read_param(folder / PARAM) if layer.number(8)}
