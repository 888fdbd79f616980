"""TensorRT: engines built without a GPU, their files, and one line for what is not there, damaged or crashes."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import exporting
import pytest
import torch
from exporting import cut_off, export_arguments, export_tensorrt, images_of, network

from deploy.onnx.graph import save_onnx
from deploy.outputs.heads import ExportMetadata
from deploy.tensorrt import export as tensorrt_export
from deploy.tensorrt.build import capabilities
from deploy.tensorrt.engine_file import EngineFile, read_engine, write_engine
from deploy.tensorrt.export import image_shapes
from models.classifiers import LeNet5
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError

RTX_4090 = "8.9"
SHAPES = ((1, 3, 16, 16), (1, 3, 32, 48), (2, 3, 64, 96))


def has(package: str) -> bool:
    return find_spec(package) is not None


needs_onnx = pytest.mark.skipif(not has("onnx"), reason="onnx is not installed; see requirements-export.txt")
needs_rtx = pytest.mark.skipif(not has("tensorrt_rtx"), reason="tensorrt-rtx-cu12 is not installed")


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return network("tiny")


def metadata_of(model: Detector, **settings: Any) -> ExportMetadata:
    return exporting.metadata_of(model, format=".engine", versions={"tensorrt_rtx": "1.7"}, **settings)


def engine_of(model: Detector, **settings: Any) -> EngineFile:
    """As if it had been built."""
    metadata = metadata_of(model, **settings)
    shapes = SHAPES if metadata.dynamic else ()
    return EngineFile(
        metadata=metadata, package="tensorrt_rtx", compute_capability=RTX_4090, image_shapes=shapes, plan=b"plan"
    )


@pytest.fixture
def stored(tiny: Detector, tmp_path: Path) -> Path:
    """A file with a plan that no TensorRT would take."""
    path = tmp_path / "best.engine"
    write_engine(path, engine_of(tiny))
    return path


@pytest.fixture
def pretended_rtx(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A `tensorrt_rtx` that knows one GPU, and no `tensorrt`."""
    package = SimpleNamespace(
        __version__="1.7", __spec__=SimpleNamespace(), ComputeCapability=SimpleNamespace(__members__={"SM89": 89})
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", package)
    monkeypatch.setattr(tensorrt_export, "find_spec", lambda name: True if name == "tensorrt_rtx" else None)
    return package


@pytest.mark.parametrize("dynamic", [False, True])
def test_file_is_read_back_unchanged(tiny: Detector, tmp_path: Path, dynamic: bool) -> None:
    engine = engine_of(tiny, dynamic=dynamic)
    write_engine(tmp_path / "best.engine", engine)
    assert read_engine(tmp_path / "best.engine") == engine
    assert [path.name for path in tmp_path.iterdir()] == ["best.engine"]


def test_plan_follows_the_magic_two_lengths_and_json(stored: Path) -> None:
    content = stored.read_bytes()
    magic, json_length, plan_length = struct.unpack("<8sIQ", content[:20])
    assert (magic, plan_length) == (b"SDENGINE", 4)
    assert content[20:21] == b"{"
    assert content[20 + json_length :] == b"plan"


def damaged(path: Path, old: bytes, new: bytes) -> None:
    """With other bytes of the same number."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda path: path.write_bytes(b""), "is not an engine with metadata of this project"),
        (lambda path: path.write_bytes(b"ftrt" + bytes(100)), "is not an engine with metadata of this project"),
        (cut_off, "is truncated or damaged"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is truncated or damaged"),
        (lambda path: damaged(path, b'{"package"', b'["package"'), "not JSON"),
        (lambda path: damaged(path, b'"package"', b'"pack_ge"'), "lacks package"),
        (
            lambda path: damaged(path, b'"tensorrt_rtx", "comp', b'"tensorrt_rto", "comp'),
            "known: tensorrt, tensorrt_rtx",
        ),
        (lambda path: damaged(path, b'"num_classes": 3', b'"num_classes": 4'), "names: got 3, expected 4"),
    ],
)
def test_damaged_file_is_one_line(damage: Callable[[Path], Any], finding: str, stored: Path) -> None:
    damage(stored)
    with pytest.raises(CheckpointError, match=finding) as caught:
        read_engine(stored)
    assert "\n" not in str(caught.value)


@pytest.mark.system
@needs_onnx
@needs_rtx
@pytest.mark.parametrize("settings", [{}, {"precision": "fp16", "dynamic": True}, {"precision": "int8"}])
def test_engine_is_built_without_a_gpu(tiny: Detector, settings: dict[str, Any], tmp_path: Path) -> None:
    if settings.get("precision") == "int8" and not has("onnxruntime"):
        pytest.skip("onnxruntime is not installed; see requirements-export.txt")
    path = tmp_path / "best.engine"
    arguments = export_arguments(tiny, **settings)
    metadata = export_tensorrt(
        tiny, path, **arguments, calibration=[images_of((32, 48))], compute_capability=RTX_4090
    )
    engine = read_engine(path)
    assert engine.metadata == metadata
    assert (engine.package, engine.compute_capability, metadata.format) == ("tensorrt_rtx", RTX_4090, ".engine")
    assert engine.image_shapes == (((1, 3, 16, 16), (1, 3, 32, 48), (8, 3, 64, 96)) if metadata.dynamic else ())
    assert engine.plan[1:4] == b"trt"
    assert [item.name for item in tmp_path.iterdir()] == ["best.engine"]


@pytest.mark.system
@needs_onnx
@needs_rtx
def test_layer_is_left_in_float_by_its_path(tiny: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    quantised: list[int] = []

    def count(graph: Any, path: Path, **more: Any) -> None:
        quantised.append(sum(node.op_type == "QuantizeLinear" for node in graph.graph.node))
        save_onnx(graph, path, **more)

    monkeypatch.setattr(tensorrt_export, "save_onnx", count)

    def export(*skip: str) -> None:
        export_tensorrt(
            tiny,
            tmp_path / "best.engine",
            **export_arguments(tiny, precision="int8"),
            calibration=[images_of((32, 48))],
            int8_skip=skip,
            compute_capability=RTX_4090,
        )

    export()
    export("model.1.conv")
    assert 0 < quantised[1] < quantised[0]
    with pytest.raises(ConfigError, match=r"--int8-skip model\.99\* matches no convolution"):
        export("model.99*")


def child(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Another program in the place of the one that builds."""
    path = folder / "child.py"
    path.write_text(program)
    monkeypatch.setattr(tensorrt_export, "_CHILD", path)


@needs_onnx
@pytest.mark.parametrize(
    ("program", "finding"),
    [
        (
            "import os, signal\nprint('Concat_12', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)",
            r"tensorrt_rtx crashed with SIGSEGV: Concat_12; try another",
        ),
        ("raise SystemExit(3)", r"exited with code 3: no output; try another"),
        (
            "print('[11/22] [TRT] [E] first\\n[11/22] [TRT] [E] second')\nraise SystemExit('no engine')",
            r"exited with code 1: no engine \(first\); try another",
        ),
    ],
)
def test_child_that_crashes_is_one_line(
    program: str,
    finding: str,
    tiny: Detector,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pretended_rtx: SimpleNamespace,
) -> None:
    child(monkeypatch, tmp_path_factory.mktemp("child"), program)
    with pytest.raises(ConfigError, match=finding) as caught:
        export_tensorrt(tiny, tmp_path / "best.engine", **export_arguments(tiny), compute_capability=RTX_4090)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.system
@needs_onnx
@needs_rtx
def test_graph_that_tensorrt_cannot_read_is_one_line(
    tiny: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")

    def unknown(graph: Any, path: Path, **_: Any) -> None:
        ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "ab"]
        nodes = [onnx.helper.make_node("Unheard", ["a"], ["b"])]
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])), path)

    monkeypatch.setattr(tensorrt_export, "save_onnx", unknown)
    with pytest.raises(
        ConfigError, match=r"exited with code 1: TensorRT cannot read the ONNX graph: .*Plugin"
    ) as caught:
        export_tensorrt(tiny, tmp_path / "best.engine", **export_arguments(tiny), compute_capability=RTX_4090)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "capability", "finding"),
    [
        ("best.plan", {}, RTX_4090, r"expected a name that ends in \.engine"),
        ("best.engine", {"precision": "bf16"}, RTX_4090, r"bf16 is not supported; expected fp32, fp16 or int8"),
        ("best.engine", {}, "", r"--compute-capability: got '', known: 8\.9"),
        ("best.engine", {}, "7.0", r"got '7\.0', known: 8\.9"),
        ("best.engine", {"image_hw": (30, 30)}, RTX_4090, r"multiple of the stride"),
        ("best.engine", {"precision": "int8"}, RTX_4090, r"int8 needs images to calibrate on"),
    ],
)
@needs_onnx
def test_failed_export_leaves_nothing(
    name: str,
    settings: dict[str, Any],
    capability: str,
    finding: str,
    tiny: Detector,
    tmp_path: Path,
    pretended_rtx: SimpleNamespace,
) -> None:
    with pytest.raises(ConfigError, match=finding):
        export_tensorrt(tiny, tmp_path / name, **export_arguments(tiny, **settings), compute_capability=capability)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("packages", "capability", "finding"),
    [
        ([], "", r"needs a package; run: pip install tensorrt"),
        (["tensorrt"], "", r"builds for the GPU of this machine, and torch finds none"),
        (["tensorrt"], RTX_4090, r"--compute-capability 8\.9: tensorrt builds for the GPU of this machine only"),
    ],
)
def test_package_or_gpu_that_is_missing_is_one_line(
    packages: Sequence[str],
    capability: str,
    finding: str,
    tiny: Detector,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tensorrt_export, "find_spec", lambda name: True if name in packages else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=finding):
        export_tensorrt(tiny, tmp_path / "best.engine", **export_arguments(tiny), compute_capability=capability)


def test_capabilities_are_spelled_as_nvidia_does() -> None:
    members = {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM120": 120}
    trt = SimpleNamespace(ComputeCapability=SimpleNamespace(__members__=members))
    assert capabilities(trt) == {"7.5": 75, "12.0": 120}


def test_engine_of_a_classifier_takes_any_batch_of_one_size(tmp_path: Path) -> None:
    job = exporting.classifier_job(LeNet5().eval(), batch_size=2)
    metadata = job.source.metadata(format=".engine", settings=job.settings, versions={"tensorrt_rtx": "1.7"})
    shapes = image_shapes(metadata, batch_size=2)
    assert shapes == ((1, 1, 28, 28), (2, 1, 28, 28), (8, 1, 28, 28))
    engine = EngineFile(
        metadata=metadata, package="tensorrt_rtx", compute_capability=RTX_4090, image_shapes=shapes, plan=b"plan"
    )
    write_engine(tmp_path / "best.engine", engine)
    assert read_engine(tmp_path / "best.engine") == engine


def test_engine_of_a_detector_takes_sides_up_to_twice_its_own(tiny: Detector) -> None:
    assert image_shapes(metadata_of(tiny), batch_size=1) == ()
    assert image_shapes(metadata_of(tiny, dynamic=True), batch_size=9) == (
        (1, 3, 16, 16),
        (9, 3, 32, 48),
        (9, 3, 64, 96),
    )
