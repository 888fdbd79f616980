"""ONNX and TorchScript: the heads of the fused model, for any network, and one line for damaged files."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exporting import cut_off, export_arguments, export_onnx, export_torchscript, head_error, images_of, network
from tiny import tiny_data

from commands.detect import detect
from commands.detect_config import DetectConfig
from commands.val import val
from commands.val_config import ValConfig
from deploy import Predictor, PredictSettings, load, load_runtime
from deploy.outputs.heads import ExportMetadata, HeadsRuntime
from deploy.settings import RuntimeOptions
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError

CPU = torch.device("cpu")
EXPORTS: dict[str, Callable[..., ExportMetadata]] = {".onnx": export_onnx, ".torchscript": export_torchscript}
KINDS = ["tiny", "pruned tiny", "yolov5n", "yolov3-tiny", "yolov5s-mobilenetv3-small-075"]


@pytest.fixture(params=list(EXPORTS))
def ending(request: pytest.FixtureRequest) -> str:
    """Each format whose packages are here."""
    if request.param == ".onnx":
        for package in ("onnx", "onnxruntime"):
            pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
    return str(request.param)


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return network("tiny")


def loaded(model: Detector, folder: Path, ending: str, **settings: Any) -> HeadsRuntime:
    """The model as an artefact, read back."""
    path = folder / f"best{ending}"
    EXPORTS[ending](model, path, **export_arguments(model, **settings))
    runtime = load_runtime(path, device=CPU)
    assert isinstance(runtime, HeadsRuntime)
    return runtime


@pytest.mark.parametrize("kind", KINDS)
def test_heads_equal_the_fused_model(kind: str, ending: str, tmp_path: Path) -> None:
    model = network(kind)
    runtime = loaded(model, tmp_path, ending)
    images = images_of(runtime.metadata.image_hw)
    assert head_error(runtime(images), model, images) < 1e-4


def test_dynamic_artefact_takes_any_batch_and_size(tiny: Detector, ending: str, tmp_path: Path) -> None:
    runtime = loaded(tiny, tmp_path, ending, dynamic=True)
    assert runtime.input_hw is None
    for count, hw in ((1, (32, 48)), (3, (96, 16))):
        images = images_of(hw, count=count)
        assert head_error(runtime(images), tiny, images) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fixed_batch_is_filled_and_cut(tiny: Detector, ending: str, tmp_path: Path, count: int) -> None:
    runtime = loaded(tiny, tmp_path, ending, batch_size=2)
    images = images_of((32, 48), count=count)
    assert head_error(runtime(images), tiny, images) < 1e-4


def test_artefact_tells_what_the_contract_asks(tiny: Detector, ending: str, tmp_path: Path) -> None:
    runtime = loaded(tiny, tmp_path, ending)
    assert (runtime.format, runtime.precision, runtime.num_classes) == (ending, "fp32", 3)
    assert (runtime.names, runtime.strides) == (("class 0", "class 1", "class 2"), (8, 16))
    assert runtime.input_hw == (32, 48)
    assert torch.equal(runtime.anchors, tiny.anchors)
    assert [path.name for path in tmp_path.iterdir()] == [f"best{ending}"]


def test_predictor_detects_with_an_artefact_of_fixed_size(tiny: Detector, ending: str, tmp_path: Path) -> None:
    runtime = loaded(tiny, tmp_path, ending)
    found = Predictor(runtime, settings=PredictSettings(img_size=48, conf=0.0))(np.zeros((100, 90, 3), np.uint8))
    assert found.image_hw == (100, 90)


def test_size_that_an_artefact_does_not_take_is_refused_by_load_and_detect(
    tiny: Detector, ending: str, tmp_path: Path
) -> None:
    loaded(tiny, tmp_path, ending)
    path = tmp_path / f"best{ending}"
    finding = re.escape(f"{path} takes images of height and width (32, 48) only; give 48")
    with pytest.raises(ConfigError, match=f"--img-size .*: got 640, but {finding}"):
        load(path, device="cpu", img_size=640)
    project = tmp_path / "runs"
    with pytest.raises(ConfigError, match=f"--img-size .*: got 640, but {finding}"):
        detect(DetectConfig(weights=(str(path),), img_size=640, device="cpu", project=str(project)))
    assert not project.exists()
    assert load(path, device="cpu").img_size == 48


def test_size_of_a_dynamic_artefact_is_free(tiny: Detector, ending: str, tmp_path: Path) -> None:
    loaded(tiny, tmp_path, ending, dynamic=True)
    assert load(tmp_path / f"best{ending}", device="cpu", img_size=160).img_size == 160
    assert load(tmp_path / f"best{ending}", device="cpu").img_size == 640


@pytest.mark.parametrize("dynamic", [True, False])
def test_val_measures_an_artefact(tiny: Detector, ending: str, tmp_path: Path, dynamic: bool) -> None:
    loaded(tiny, tmp_path, ending, dynamic=dynamic, image_hw=(64, 64))
    config = ValConfig(
        weights=(str(tmp_path / f"best{ending}"),),
        data=str(tiny_data(tmp_path / "data", images=3)),
        img_size=64,
        rect=dynamic,
        batch_size=2,
        workers=0,
        device="cpu",
        project=str(tmp_path / "runs"),
    )
    evaluation = val(config)
    assert evaluation is not None
    assert evaluation.images == 3


def test_image_of_another_size_is_refused_by_an_artefact_of_fixed_size(
    tiny: Detector, ending: str, tmp_path: Path
) -> None:
    runtime = loaded(tiny, tmp_path, ending)
    with pytest.raises(ConfigError, match=re.escape("height and width (32, 48) only, got (64, 64)")):
        runtime(images_of((64, 64)))


def test_file_that_is_cut_off_is_one_line(tiny: Detector, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"best{ending}"
    EXPORTS[ending](tiny, path, **export_arguments(tiny))
    cut_off(path)
    with pytest.raises(CheckpointError, match="truncated; export it again") as caught:
        load_runtime(path, device=CPU)
    assert "\n" not in str(caught.value)


def test_failed_export_leaves_no_file(tiny: Detector, ending: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of the stride"):
        EXPORTS[ending](tiny, tmp_path / f"best{ending}", **export_arguments(tiny, image_hw=(30, 30)))
    with pytest.raises(ConfigError, match=r"int8 (is not supported|needs images to calibrate on)"):
        EXPORTS[ending](tiny, tmp_path / f"best{ending}", **export_arguments(tiny, precision="int8"))
    assert list(tmp_path.iterdir()) == []


def test_half_is_a_warning_where_the_artefact_is_fp32(
    tiny: Detector, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded(tiny, tmp_path, ending)
    load_runtime(tmp_path / f"best{ending}", device=CPU, options=RuntimeOptions(half=True))
    assert "computes in fp32, as it was exported" in caplog.text


def test_torchscript_of_others_lacks_our_metadata(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(str(tmp_path / "best.torchscript"))
    with pytest.raises(CheckpointError, match="contains no metadata of this project"):
        load_runtime(tmp_path / "best.torchscript", device=CPU)


def test_onnx_of_others_lacks_our_metadata(tiny: Detector, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
    loaded(tiny, tmp_path, ".onnx")
    graph = onnx.load(tmp_path / "best.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "best.onnx")
    with pytest.raises(CheckpointError, match="contains no metadata of this project"):
        load_runtime(tmp_path / "best.onnx", device=CPU)


def test_onnx_names_its_ends_and_half_halves_the_file(tiny: Detector, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")
    runtime = loaded(tiny, tmp_path, ".onnx")
    full_size = (tmp_path / "best.onnx").stat().st_size
    graph = onnx.load(tmp_path / "best.onnx").graph
    assert [item.name for item in (*graph.input, *graph.output)] == ["images", "head0", "head1"]
    half = loaded(tiny, tmp_path, ".onnx", precision="fp16")
    assert (runtime.precision, half.precision) == ("fp32", "fp16")
    assert (tmp_path / "best.onnx").stat().st_size < 0.65 * full_size
    images = images_of((32, 48))
    assert head_error(half(images), tiny, images) < 2e-2


def test_opset_that_the_exporter_does_not_know_is_refused(tiny: Detector, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--opset 99: expected 11 to 20"):
        export_onnx(tiny, tmp_path / "best.onnx", **export_arguments(tiny, opset=99))


def test_missing_package_is_one_line_with_the_command(
    tiny: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"needs the package onnx .*run: pip install -r requirements-export.txt"):
        export_onnx(tiny, tmp_path / "best.onnx", **export_arguments(tiny))
