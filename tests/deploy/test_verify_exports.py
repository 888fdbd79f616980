"""Verification of real exports on photographs: right ones pass, wrong ones fail by their boxes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exporting import export_onnx
from torch import Tensor

from deploy.calibration import as_input
from deploy.formats import load_runtime
from deploy.outputs.detector import DetectorSource
from deploy.settings import ExportSettings
from deploy.verification.heads import box_agreement
from deploy.verification.verify import Reference, VerifyReport, verify
from models.detector import Detector
from models.load import LoadedModel, load_model
from utils.boxes.decode import decode_heads

pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")

CPU = torch.device("cpu")
SIDE = 320


@pytest.fixture(scope="module")
def loaded(shared: Path) -> LoadedModel:
    return load_model(shared / "weights/yolov5n_v6_coco.pt")


@pytest.fixture(scope="module")
def photographs(shared: Path) -> Tensor:
    files = sorted((shared / "data/coco128_val/images").iterdir())[:24]
    return torch.cat([as_input(file, (SIDE, SIDE)) for file in files])


def report_of(exported: Detector, loaded: LoadedModel, photographs: Tensor, folder: Path) -> VerifyReport:
    """The report of a network exported in the place of another one."""
    path = folder / "best.onnx"
    settings = ExportSettings(image_hw=(SIDE, SIDE))
    export_onnx(exported, path, names=loaded.names, source_sha256="0" * 64, settings=settings)
    source = DetectorSource(model=loaded.model, names=loaded.names)
    reference = Reference(path=path, source=source, images=photographs[:4], threads=1)
    return verify(load_runtime(path, device=CPU), reference, path=path)


def by_output(values: Tensor) -> Tensor:
    """(A * (5 + nc), ...) seen as (A, 5 + nc, ...)."""
    return values.view(3, -1, *values.shape[1:])


def shift(model: Detector) -> None:
    """Move all boxes to the right by some pixels."""
    for layer in model.head.m:
        by_output(layer.bias)[:, 0] += 2


def swap_classes(model: Detector) -> None:
    """Give each class the number of the next one."""
    for layer in model.head.m:
        for values in (layer.weight, layer.bias):
            by_output(values)[:, 5:] = by_output(values)[:, 5:].roll(1, 1).clone()


def lose_boxes(model: Detector) -> None:
    """Find nothing at one of the three levels."""
    by_output(model.head.m[1].bias)[:, 4] -= 9


def test_right_export_passes(loaded: LoadedModel, photographs: Tensor, tmp_path: Path) -> None:
    report = report_of(loaded.model, loaded, photographs, tmp_path)
    assert report.passed
    assert report.agreement.boxes.expected == report.agreement.boxes.matched >= 10


@pytest.mark.parametrize("wrong", [shift, swap_classes, lose_boxes])
def test_wrong_export_fails_by_its_boxes(
    wrong: Callable[[Detector], None], loaded: LoadedModel, photographs: Tensor, tmp_path: Path
) -> None:
    model = copy.deepcopy(loaded.model)
    with torch.no_grad():
        wrong(model)
    report = report_of(model, loaded, photographs, tmp_path)
    assert any(failure.startswith("share of boxes without a partner: ") for failure in report.failures)
    assert report.agreement.boxes.share < 0.9


def test_noise_smaller_than_the_tolerance_is_no_difference(loaded: LoadedModel, photographs: Tensor) -> None:
    runtime = DetectorSource(model=loaded.model, names=loaded.names).runtime(CPU)
    expected = decode_heads(runtime(photographs), runtime.anchors, runtime.strides)
    noise = torch.rand(expected.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    found = expected.clone()
    found[..., 5:] += 0.9 * 0.02 * noise[..., 5:]
    agreement = box_agreement(found, expected, tie=0.02)
    assert agreement.share == 1
    assert agreement.tied > 0
    # Held to a tolerance that the noise exceeds, the same boxes differ.
    assert box_agreement(found, expected, tie=1e-4).share < 1
