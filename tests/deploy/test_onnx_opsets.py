"""ONNX at every opset: the numbers of the network, and one line where an opset lacks something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exporting import classifier_job, export_arguments, export_onnx, head_error, images_of, network

from deploy.export import export
from deploy.formats import load_runtime
from deploy.onnx.graph import OPSETS, GraphSettings, trace_onnx
from utils.errors import ConfigError

onnx = pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")

CPU = torch.device("cpu")
KINDS = ["tiny", "pruned tiny", "yolov5s", "yolov5n", "pruned yolov5n", "yolov5s-mobilenetv3-small-075"]


def opset_of(path: Path) -> int:
    (operators,) = onnx.load(path).opset_import
    assert operators.domain == ""
    return int(operators.version)


@pytest.mark.parametrize("opset", [11, 12, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_old_opsets_give_the_heads_of_the_network(kind: str, opset: int, tmp_path: Path) -> None:
    model = network(kind)
    export_onnx(model, tmp_path / "best.onnx", **export_arguments(model, opset=opset))
    assert opset_of(tmp_path / "best.onnx") == opset
    runtime = load_runtime(tmp_path / "best.onnx", device=CPU)
    images = images_of(runtime.input_hw or (64, 64))
    assert head_error(runtime(images), model, images) < 1e-4


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_every_opset_that_is_offered_gives_the_heads_of_the_network(
    dynamic: bool, opset: int, tmp_path: Path
) -> None:
    model = network("tiny")
    export_onnx(model, tmp_path / "best.onnx", **export_arguments(model, opset=opset, dynamic=dynamic))
    images = images_of((32, 48), count=2)
    assert opset_of(tmp_path / "best.onnx") == opset
    assert head_error(load_runtime(tmp_path / "best.onnx", device=CPU)(images), model, images) < 1e-4


@pytest.mark.parametrize("opset", [11, 13])
def test_half_needs_no_newer_opset(opset: int, tmp_path: Path) -> None:
    model = network("tiny")
    export_onnx(model, tmp_path / "best.onnx", **export_arguments(model, opset=opset, precision="fp16"))
    images = images_of((32, 48))
    assert opset_of(tmp_path / "best.onnx") == opset
    assert head_error(load_runtime(tmp_path / "best.onnx", device=CPU)(images), model, images) < 2e-2


def test_int8_takes_opset_13_and_names_it_where_an_older_one_is_asked_for(tmp_path: Path) -> None:
    model, images = network("tiny"), images_of((32, 48))
    path = tmp_path / "best.onnx"
    with pytest.raises(ConfigError, match=r"--opset 12: its DequantizeLinear lacks .*; give --opset 13"):
        export_onnx(model, path, **export_arguments(model, opset=12, precision="int8"), calibration=[images])
    assert not path.exists()
    export_onnx(model, path, **export_arguments(model, opset=13, precision="int8"), calibration=[images])
    assert opset_of(path) == 13
    assert head_error(load_runtime(path, device=CPU)(images), model, images) < 0.1


def test_attention_below_opset_14_is_one_line_that_names_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = network("yolov5s-transformer")
    with pytest.raises(ConfigError) as caught:
        export_onnx(model, tmp_path / "best.onnx", **export_arguments(model, opset=13))
    assert str(caught.value) == (
        "--opset 13 lacks the operator scaled_dot_product_attention, which this network uses; give --opset 14"
    )
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    export_onnx(model, tmp_path / "best.onnx", **export_arguments(model, opset=14))
    images = images_of((64, 96))
    assert head_error(load_runtime(tmp_path / "best.onnx", device=CPU)(images), model, images) < 1e-4


def test_operator_that_no_opset_has_is_one_line() -> None:
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1(x)

    with pytest.raises(
        ConfigError, match=r"^--opset 17 lacks the operator special_i1, .*; export to another format$"
    ):
        trace_onnx(Odd(), [torch.zeros(1)], GraphSettings(inputs=["a"], outputs=["b"]))


def test_classifiers_take_old_opsets(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    )
    job = classifier_job(model.eval(), image_chw=(1, 8, 8), opset=11)
    export(job, tmp_path / "best.onnx")  # compares by itself
    assert opset_of(tmp_path / "best.onnx") == 11
