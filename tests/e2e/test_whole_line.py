"""From a data set to boxes, as a user goes: train.py, val.py, detect.py, the Python API."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from commands.detect import detect
from commands.detect_config import DetectConfig
from commands.train import train
from commands.train_result import TrainResult
from commands.val import val
from commands.val_config import ValConfig
from deploy import load
from utils.metrics.coco import TWELVE


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """A tiny network, trained long enough to find something."""
    folder = tmp_path_factory.mktemp("line")
    result = train(tiny_config(folder, epochs=12, img_size=(160,), optimizer="adamw", lr0=0.01, cache_images=True))
    assert result is not None
    return folder, result


def test_training_learns_something(trained: tuple[Path, TrainResult]) -> None:
    _, result = trained
    rows = (result.folder / "results.csv").read_text().splitlines()
    losses = [float(row.split(",")[1]) for row in rows[1:]]  # of the boxes
    assert losses[-1] < losses[0]


def test_val_gives_the_numbers_that_training_reported(trained: tuple[Path, TrainResult]) -> None:
    folder, result = trained
    evaluation = val(
        ValConfig(
            weights=(str(result.best),),
            data=str(folder / "data/tiny.yaml"),
            img_size=160,
            workers=0,
            device="cpu",
            cache_dir=str(folder / "cache"),
            project=str(folder / "val"),
        )
    )
    assert evaluation is not None
    written = json.loads((folder / "val/exp/result.json").read_text())
    reported = json.loads((result.folder / "result.json").read_text())["metrics"]
    for name in TWELVE:
        assert written[name] == pytest.approx(reported[name], abs=1e-6), name


def test_detect_and_the_python_api_find_the_same_boxes(trained: tuple[Path, TrainResult]) -> None:
    folder, result = trained
    picture = (folder / "data/val.txt").read_text().splitlines()[0]
    settings = {"conf_thres": 0.001, "img_size": 160, "device": "cpu", "save_json": True}
    detect(DetectConfig(weights=(str(result.best),), source=picture, project=str(folder / "detect"), **settings))
    (entry,) = json.loads((folder / "detect/exp/detections.json").read_text())
    found = load(str(result.best), device="cpu", conf=0.001, img_size=160)(picture)
    assert len(found) == len(entry["detections"]) > 0
    scores = [box["score"] for box in entry["detections"]]
    np.testing.assert_allclose(sorted(scores), sorted(found.scores.tolist()), atol=1e-4)
