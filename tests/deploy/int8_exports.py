"""Small exports to ncnn, and what int8 makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from exporting import detector_job, export_arguments, export_ncnn
from torch import Tensor

from deploy.int8.calibration import Int8Calibration, calibrated
from deploy.ncnn.int8 import ARITHMETIC, FloatFolder
from deploy.ncnn.param import read_param
from deploy.ncnn.runtime import load_ncnn
from deploy.outputs.metadata import folder_metadata
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
    """The detector as a folder for ncnn; int8 is learnt from the pictures."""
    special = {name: settings.pop(name) for name in ("int8_skip", "calib_method") if name in settings}
    calibration = pictures() if settings.get("precision") == "int8" else ()
    arguments = export_arguments(model, image_hw=HW, **settings)
    export_ncnn(model, folder, calibration=calibration, **arguments, **special)
    return folder


def calibration_of(
    model: Detector, folder: Path, *, images: Sequence[Tensor] | None = None, **special: Any
) -> tuple[FloatFolder, Int8Calibration]:
    """An fp32 export with the calibration of its network."""
    images = pictures() if images is None else images
    job = detector_job(model, calibration=images, **export_arguments(model, image_hw=HW), **special)
    source = FloatFolder.read(folder)
    metadata = folder_metadata(folder)
    return source, calibrated(job, ARITHMETIC, metadata=metadata, stored=source.stored, floats=source.floats)


def heads_of(folder: Path, images: Tensor, *, half: bool = False) -> list[Tensor]:
    return load_ncnn(folder, device=CPU, options=RuntimeOptions(half=half))(images)


def int8_layers(folder: Path) -> set[str]:
    return {layer.name for layer in read_param(folder / PARAM) if layer.number(8)}
