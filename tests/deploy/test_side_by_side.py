"""An exported file and the dense network in turns: on every runtime that can run here, detectors and classifiers."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import classifier_job, network

from deploy.formats import FORMATS, resolve
from deploy.job import ExportJob
from deploy.latency.side_by_side import SideBySide, counted_precision, time_side_by_side
from deploy.outputs.detector import DetectorSource
from deploy.settings import ExportSettings, RuntimeOptions
from models.classifiers import LeNet5
from utils.errors import CheckpointError

HERE = [name for name, form in FORMATS.items() if form.write and not form.needs_gpu]


def detector_job(kind: str) -> ExportJob:
    source = DetectorSource(model=network(kind), names=["a", "b", "c"])
    return ExportJob(source=source, settings=ExportSettings(image_hw=(64, 64)))


def timed(name: str, own: ExportJob, other: ExportJob, folder: Path, *, chw: tuple[int, int, int]) -> SideBySide:
    """Export a network, and time the other one beside it."""
    for package in FORMATS[name].packages:
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
    path = folder / f"small{FORMATS[name].suffix}"
    resolve(FORMATS[name].write)(own, path)
    images = own.source.noise(1, chw)
    return time_side_by_side(path, other, images, weights=Path("dense.pt"), options=RuntimeOptions(threads=1))


@pytest.mark.parametrize("name", HERE)
def test_both_networks_are_timed_on_every_runtime(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = detector_job("pruned tiny")
    found = timed(name, own, detector_job("tiny"), tmp_path, chw=(3, 64, 64))
    (other,) = found.others
    assert min(found.milliseconds, other.milliseconds) > 0
    assert other.speedup == pytest.approx(other.milliseconds / found.milliseconds)
    assert (found.precision, other.precision, found.threads, found.batch_size) == ("fp32", "fp32", 1, 1)
    assert found.to_dict()["others"] == [
        {"precision": "fp32", "milliseconds": other.milliseconds, "speedup": other.speedup}
    ]
    assert f"{other.speedup:.2f} times as fast (threads: 1)" in found.as_text()
    # The dense network went to a temporary place, which is gone.
    assert [path.name for path in tmp_path.iterdir()] == [found.path.name]


@pytest.mark.parametrize(("name", "precision"), [("onnx", "int8"), ("onnx", "fp16"), ("ncnn", "int8")])
def test_int8_is_compared_with_fp32_and_with_int8_and_fp16_with_fp16(
    name: str, precision: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"precision": precision, "image_hw": (28, 28)}
    images = torch.rand(4, 1, 28, 28)
    calibration = [image[None] for image in images] if precision == "int8" else []
    own = classifier_job(LeNet5(), calibration=calibration, **settings)
    found = timed(name, own, classifier_job(LeNet5(), image_hw=(28, 28)), tmp_path, chw=(1, 28, 28))
    wanted = ["fp32", "int8"] if precision == "int8" else [precision]
    assert (found.precision, [other.precision for other in found.others]) == (precision, wanted)
    assert min(other.milliseconds for other in found.others) > 0
    assert counted_precision(found.precision) == wanted[0]


def test_file_that_export_does_not_write_is_refused(tmp_path: Path) -> None:
    job = detector_job("tiny")
    with pytest.raises(CheckpointError, match=r"a\.pt: not a file of a format that export\.py writes"):
        time_side_by_side(
            tmp_path / "a.pt", job, torch.zeros(1, 3, 64, 64), weights=Path("b.pt"), options=RuntimeOptions()
        )
