"""hubconf.py, as torch.hub calls it from the project folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import hubconf
from deploy import Predictor
from models.detector import Detector
from utils.errors import ConfigError

ROOT = Path(__file__).parents[1]


def hub_load(model: str, *args, **options):
    return torch.hub.load(str(ROOT), model, *args, source="local", **options)


def test_named_model_takes_pictures() -> None:
    model = hub_load("yolov5n", classes=3, device="cpu", conf=0.9)
    assert isinstance(model, Predictor)
    found = model(np.zeros((50, 80, 3), np.uint8), size=96)
    assert found.names == ("class0", "class1", "class2")
    assert found.image_hw == (50, 80)


def test_autoshape_off_gives_the_bare_network() -> None:
    model = hub_load("yolov5n6", classes=2, autoshape=False, device="cpu")
    assert isinstance(model, Detector)
    assert model.strides == (8, 16, 32, 64)
    assert not model.training


def test_pretrained_without_weights_says_that_nothing_is_downloaded() -> None:
    with pytest.raises(ConfigError, match="nothing is downloaded"):
        hub_load("yolov5s", pretrained=True)


def test_every_v5_size_is_offered() -> None:
    offered = {name for name, value in vars(hubconf).items() if callable(value)}
    assert {f"yolov5{size}{tail}" for size in "nsmlx" for tail in ("", "6")} | {"custom"} <= offered


def test_every_dependency_is_installed() -> None:
    assert all(importlib.util.find_spec(package) for package in hubconf.dependencies)


def test_custom_reads_an_official_checkpoint(shared: Path) -> None:
    model = hub_load("custom", path=shared / "weights" / "yolov5n_v6_coco.pt", device="cpu")
    assert model.names[0] == "person"
    assert len(model.names) == 80
