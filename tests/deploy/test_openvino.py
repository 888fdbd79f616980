"""Export to OpenVINO and back: the heads of the network, the arithmetic that was asked for, damage in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import cut_off, export_arguments, export_openvino, head_error, images_of, network

from deploy.formats import load_runtime
from deploy.openvino import load_openvino
from deploy.outputs.heads import HeadsRuntime
from deploy.settings import RuntimeOptions
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError

openvino = pytest.importorskip("openvino", reason="openvino is not installed; see requirements-export.txt")
pytest.importorskip("onnx", reason="onnx is not installed; see requirements-export.txt")

CPU = torch.device("cpu")
NAME = "best_openvino_model"
KINDS = [
    "tiny",
    "pruned tiny",
    "yolov5n",
    "yolov3-tiny",
    "yolov5s-mobilenetv3-small-075",
    "yolov5s-transformer",
]


def loaded(folder: Path, **options: Any) -> HeadsRuntime:
    return load_openvino(folder, device=CPU, options=RuntimeOptions(**options))


def exported(model: Detector, parent: Path, **settings: Any) -> HeadsRuntime:
    """The model as an artefact, read back."""
    export_openvino(model, parent / NAME, **export_arguments(model, **settings))
    return loaded(parent / NAME)


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return network("tiny")


@pytest.fixture(scope="module")
def tiny_folder(tiny: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector, exported once; not to be changed."""
    folder = tmp_path_factory.mktemp("openvino")
    exported(tiny, folder)
    return folder / NAME


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / NAME))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_equal_the_fused_model(kind: str, tmp_path: Path) -> None:
    model = network(kind)
    runtime = exported(model, tmp_path)
    images = images_of(runtime.metadata.image_hw)
    assert head_error(runtime(images), model, images) < 1e-4


def test_dynamic_artefact_takes_any_batch_and_size(tiny: Detector, tmp_path: Path) -> None:
    runtime = exported(tiny, tmp_path, dynamic=True)
    assert runtime.input_hw is None
    for count, hw in ((1, (32, 48)), (3, (96, 16)), (1, (32, 48))):
        images = images_of(hw, count=count)
        assert head_error(runtime(images), tiny, images) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fixed_batch_is_filled_and_cut(tiny: Detector, tmp_path: Path, count: int) -> None:
    runtime = exported(tiny, tmp_path, batch_size=2)
    images = images_of((32, 48), count=count)
    assert head_error(runtime(images), tiny, images) < 1e-4


def test_second_image_leaves_the_heads_of_the_first_alone(tiny_folder: Path) -> None:
    runtime = loaded(tiny_folder)
    first = runtime(images_of((32, 48)))
    before = [head.clone() for head in first]
    runtime(torch.zeros(1, 3, 32, 48))
    assert all(torch.equal(head, kept) for head, kept in zip(first, before, strict=True))


@pytest.mark.parametrize("name", ["model_v2", "best_ncnn_model"])
def test_renamed_folder_still_loads(name: str, copied: Path) -> None:
    runtime = load_runtime(copied.rename(copied.with_name(name)), device=CPU)
    assert runtime.format == "_openvino_model"
    images = images_of((32, 48))
    assert all(map(torch.equal, runtime(images), loaded(copied.with_name(name))(images)))


def test_artefact_tells_what_the_contract_asks(tiny: Detector, tiny_folder: Path) -> None:
    runtime = loaded(tiny_folder, threads=1)
    assert (runtime.format, runtime.precision, runtime.num_classes) == ("_openvino_model", "fp32", 3)
    assert (runtime.names, runtime.strides) == (("class 0", "class 1", "class 2"), (8, 16))
    assert runtime.input_hw == (32, 48)
    assert torch.equal(runtime.anchors, tiny.anchors)
    assert set(runtime.metadata.versions) == {"torch", "onnx", "openvino"}
    assert sorted(path.name for path in tiny_folder.iterdir()) == ["metadata.json", "model.bin", "model.xml"]


def test_half_file_is_half_as_big_and_close(tiny: Detector, tiny_folder: Path, tmp_path: Path) -> None:
    runtime = exported(tiny, tmp_path, precision="fp16")
    sizes = [(folder / "model.bin").stat().st_size for folder in (tmp_path / NAME, tiny_folder)]
    images = images_of((32, 48))
    assert runtime.precision == "fp16"
    assert sizes[0] < 0.6 * sizes[1]
    assert head_error(runtime(images), tiny, images) < 1e-2


def test_half_computes_in_sixteen_bits_or_says_that_it_cannot(
    tiny: Detector, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = loaded(tiny_folder, half=True)
    images = images_of((32, 48))
    assert runtime.precision in ("bf16", "fp16") or "no 16-bit arithmetic" in caplog.text
    assert head_error(runtime(images), tiny, images) < 0.1


def test_threads_and_arithmetic_reach_openvino(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: list[dict[str, Any]] = []

    class Core(openvino.Core):
        def compile_model(self, model: Any, device_name: str, config: dict[str, Any]) -> Any:
            settings.append(config)
            return super().compile_model(model, device_name, config)

        def get_property(self, device_name: str, property: str) -> Any:
            return ["FP32"]

    monkeypatch.setattr(openvino, "Core", Core)
    loaded(tiny_folder, threads=3)
    assert loaded(tiny_folder, threads=2, half=True).precision == "fp32"
    assert [(item["INFERENCE_NUM_THREADS"], item["INFERENCE_PRECISION_HINT"]) for item in settings] == [
        (3, "f32"),
        (2, "f32"),
    ]


def test_int8_is_close_and_small(tiny: Detector, tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")
    images = images_of((32, 48))
    export_openvino(tiny, tmp_path / NAME, **export_arguments(tiny, precision="int8"), calibration=[images])
    runtime = loaded(tmp_path / NAME)
    sizes = [(folder / "model.bin").stat().st_size for folder in (tmp_path / NAME, tiny_folder)]
    assert (runtime.precision, loaded(tmp_path / NAME, half=True).precision) == ("int8", "int8")
    assert sizes[0] < 0.5 * sizes[1]
    # Activations around zero give 0.05 here, in OpenVINO 2026.4 only.
    assert head_error(runtime(images), tiny, images) < 0.01


def test_export_again_replaces_an_export_and_nothing_else(copied: Path, tmp_path: Path) -> None:
    model = network("pruned tiny")
    runtime = exported(model, tmp_path)
    images = images_of((32, 48))
    assert head_error(runtime(images), model, images) < 1e-4
    (tmp_path / "mine_openvino_model").mkdir()
    with pytest.raises(ConfigError, match=r"exists and contains no model\.xml; move it away"):
        export_openvino(model, tmp_path / "mine_openvino_model", **export_arguments(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "mine_openvino_model"]


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_identity(folder: Path) -> None:
    path = folder / "model.xml"
    path.write_text(path.read_text().replace("exported_from", "other"))


@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        (lambda folder: cut_off(folder / "model.bin"), r"truncated or damaged \(Incorrect weights"),
        (lambda folder: cut_off(folder / "model.xml"), r"truncated or damaged \("),
        (lambda folder: (folder / "model.xml").write_text(""), r"truncated or damaged \("),
        (lambda folder: (folder / "model.bin").unlink(), r"contains no model\.bin"),
        (lambda folder: (folder / "model.xml").unlink(), r"contains no model\.xml"),
        (lambda folder: (folder / "metadata.json").unlink(), r"contains no readable metadata\.json"),
        (lambda folder: cut_off(folder / "metadata.json"), r"not JSON, or is truncated"),
        (
            lambda folder: edited(folder, spec_fingerprint="1"),
            r"metadata\.json belongs to another model than model\.xml",
        ),
        (
            lambda folder: edited(folder, source_sha256="1"),
            r"metadata\.json belongs to another model than model\.xml",
        ),
        (without_identity, r"metadata\.json belongs to another model than model\.xml"),
    ],
)
def test_damage_is_one_line(damage: Callable[[Path], Any], finding: str, copied: Path) -> None:
    damage(copied)
    with pytest.raises(CheckpointError, match=finding) as caught:
        loaded(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "finding"),
    [
        ("best", {}, r"expected a name that ends in _openvino_model"),
        (NAME, {"precision": "bf16"}, r"bf16 is not supported; expected fp32, fp16 or int8"),
        (NAME, {"precision": "int8"}, r"int8 needs images to calibrate on"),
        (NAME, {"image_hw": (30, 30)}, r"multiple of the stride"),
    ],
)
def test_failed_export_leaves_nothing(
    name: str, settings: dict[str, Any], finding: str, tiny: Detector, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=finding):
        export_openvino(tiny, tmp_path / name, **export_arguments(tiny, **settings))
    assert list(tmp_path.iterdir()) == []


def test_gpu_is_refused_with_a_warning(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime = load_openvino(tiny_folder, device=torch.device("cuda:0"), options=RuntimeOptions())
    assert runtime.device == CPU
    assert "runs on the CPU here, not on cuda:0" in caplog.text
