"""The registry: formats by the artefact's name, and one line for the rest; the PyTorch runtime's contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cell_runtime import CellRuntime, load_cells

from deploy import FORMATS, Format, load_runtime
from deploy.outputs.detector import DetectorSource
from models.detector import Detector, build_model
from models.spec import ModelSpec
from utils.errors import CheckpointError, ConfigError, UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return build_model(ModelSpec.from_yaml("yolov5n.yaml", num_classes=3)).eval()


@pytest.mark.parametrize("name", ["best.tflite", "best.zip", "best"])
def test_unknown_format_lists_the_known_ones(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"unsupported format .*known: \.pt"):
        load_runtime(tmp_path / name, device=CPU)


@pytest.mark.parametrize("name", ["nowhere.pt", "nowhere_ncnn_model", "nowhere"])
def test_missing_weights_are_named(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} do not exist"):
        load_runtime(name, device=CPU)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_file_that_is_no_checkpoint_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"best\.pt") as caught:
        load_runtime(path, device=CPU)
    assert "\n" not in str(caught.value)


def test_registered_ending_chooses_its_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "cells", Format(suffix="_cells_model", load=load_cells))
    (tmp_path / "best_cells_model").mkdir()
    assert isinstance(load_runtime(tmp_path / "best_cells_model", device=CPU), CellRuntime)


def test_pytorch_runtime_gives_the_heads_of_the_model(detector: Detector) -> None:
    runtime = DetectorSource(model=detector, names=("a", "b", "c")).runtime(CPU)
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        expected = detector(images)
    heads = runtime(images)
    assert [tuple(head.shape) for head in heads] == [(2, 3, 8, 12, 8), (2, 3, 4, 6, 8), (2, 3, 2, 3, 8)]
    for head, reference in zip(heads, expected, strict=True):
        torch.testing.assert_close(head, reference, rtol=1e-4, atol=1e-4)


def test_pytorch_runtime_tells_what_the_contract_asks(detector: Detector) -> None:
    runtime = DetectorSource(model=detector, names=("a", "b", "c")).runtime(CPU)
    assert (runtime.format, runtime.precision, runtime.num_classes) == (".pt", "fp32", 3)
    assert (runtime.strides, runtime.input_hw) == ((8, 16, 32), None)
    assert runtime.anchors[0].tolist() == [[10, 13], [16, 30], [33, 23]]


def test_half_computes_in_sixteen_bits_or_says_that_it_cannot(detector: Detector, caplog) -> None:
    runtime = DetectorSource(model=detector, names=("a", "b", "c")).runtime(CPU, half=True)
    assert runtime.precision == "bf16" or "no 16-bit arithmetic" in caplog.text
    assert runtime(torch.rand(1, 3, 64, 64))[0].dtype == torch.float32
