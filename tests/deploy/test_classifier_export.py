"""Classifiers on every runtime give the logits of the network; what cannot be exported is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_oracle import cuttable_ids
from exporting import classifier_job, cut_off
from mask_oracle import lively
from torch import Tensor, nn

from deploy import load, load_classifier, load_runtime
from deploy.export import export
from deploy.ncnn.param import read_param
from deploy.outputs.classifier import weights_fingerprint
from deploy.outputs.logits import ClassifierMetadata, LogitsRuntime
from deploy.outputs.metadata import check_is_of, read_metadata
from deploy.settings import FormatSettings
from deploy.verification.logits import logits_error
from deploy.verification.verify import Reference, verify
from models.classifiers import ClassifierSpec, DenseNetCifar, LeNet5, build_classifier
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, save_checkpoint

CPU = torch.device("cpu")
PACKAGES = {
    ".onnx": ("onnx", "onnxruntime"),
    ".torchscript": (),
    "_ncnn_model": ("ncnn", "pnnx"),
    "_openvino_model": ("openvino", "onnx"),
}
WEIGHTS = {"_ncnn_model": "model.ncnn.bin", "_openvino_model": "model.bin"}


def need(ending: str) -> None:
    for package in PACKAGES[ending]:
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")


@pytest.fixture(params=list(PACKAGES))
def ending(request: pytest.FixtureRequest) -> str:
    """Each format whose packages are here."""
    need(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def lenet() -> nn.Module:
    torch.manual_seed(0)
    return LeNet5().eval()


def mobilenet() -> nn.Module:
    """With depthwise convolutions and gates."""
    torch.manual_seed(0)
    model = import_torchvision().models.mobilenet_v3_small(num_classes=7)
    assert isinstance(model, nn.Module)
    return lively(model).float()


def pruned_densenet() -> nn.Module:
    torch.manual_seed(0)
    model = lively(DenseNetCifar(depth=10)).float()
    graph = ChannelGraph.of(model, image_chw=(3, 32, 32))
    return cut(model, graph, cuttable_ids(graph, seed=1)).float()


@torch.inference_mode()
def error_of(runtime: LogitsRuntime, model: nn.Module) -> float:
    """Of an artefact on images of its own."""
    images = torch.rand(3, *runtime.metadata.image_chw, generator=torch.Generator().manual_seed(5))
    return logits_error(runtime(images), model(images))


def exported_error(model: nn.Module, path: Path, **facts: Any) -> float:
    """Of the artefact, read back."""
    export(classifier_job(model, **facts), path)
    return error_of(load_classifier(path), model)


def test_logits_of_lenet_are_those_of_the_network(lenet: nn.Module, ending: str, tmp_path: Path) -> None:
    assert exported_error(lenet, tmp_path / f"lenet{ending}") < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [f"lenet{ending}"]


def test_logits_of_a_pruned_densenet_are_those_of_the_network(ending: str, tmp_path: Path) -> None:
    assert exported_error(pruned_densenet(), tmp_path / f"dense{ending}", image_chw=(3, 32, 32)) < 1e-4


def test_logits_of_a_torchvision_network_are_those_of_the_network(ending: str, tmp_path: Path) -> None:
    assert exported_error(mobilenet(), tmp_path / f"mobilenet{ending}", image_chw=(3, 32, 32)) < 1e-4


def test_metadata_are_read_back(lenet: nn.Module, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"lenet{ending}"
    written = export(classifier_job(lenet, names=tuple("0123456789"), mean=(0.13,), std=(0.31,)), path)
    found = load_classifier(path).metadata
    assert found == written
    assert (found.format, found.num_classes, found.image_chw) == (ending, 10, (1, 28, 28))
    assert (found.names, found.mean, found.std) == (tuple("0123456789"), (0.13,), (0.31,))
    assert found.fingerprint == weights_fingerprint(lenet)


def test_renamed_ncnn_folder_still_loads(lenet: nn.Module, tmp_path: Path) -> None:
    need("_ncnn_model")
    export(classifier_job(lenet), tmp_path / "lenet_ncnn_model")
    renamed = (tmp_path / "lenet_ncnn_model").rename(tmp_path / "digits_v2")
    assert error_of(load_classifier(renamed), lenet) < 1e-4


def test_network_is_not_touched(tmp_path: Path) -> None:
    model = LeNet5().double().train()
    export(classifier_job(model), tmp_path / "lenet.torchscript")
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float64 for parameter in model.parameters())


@pytest.mark.parametrize("half", [".onnx", "_ncnn_model", "_openvino_model"])
def test_sixteen_bits_halve_the_weights(lenet: nn.Module, half: str, tmp_path: Path) -> None:
    need(half)
    path = tmp_path / f"lenet{half}"
    size = {}
    for precision in ("fp32", "fp16"):
        export(classifier_job(lenet, precision=precision), path)
        size[precision] = (path / WEIGHTS.get(half, "")).stat().st_size
    assert size["fp16"] < 0.65 * size["fp32"]
    assert load_classifier(path).metadata.precision == "fp16"


def test_given_images_are_compared_too(lenet: nn.Module, tmp_path: Path) -> None:
    images = torch.full((1, 1, 28, 28), torch.nan)
    with pytest.raises(ConfigError, match=r"differs from its network: error of logits: nan, at most"):
        export(classifier_job(lenet), tmp_path / "lenet.torchscript", images=images)
    assert list(tmp_path.iterdir()) == []


class Drifting(nn.Module):
    """Gives other numbers at each call, as a trace cannot."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        Drifting.calls += 1
        return images.flatten(1)[:, :2] + Drifting.calls


def test_logits_of_another_network_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"differs from its network: error of logits: .*at most 0.0001 allowed"):
        export(classifier_job(Drifting()), tmp_path / "net.torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "finding"),
    [
        ("best.pb", {}, r"unsupported format; known: _ncnn_model, \.onnx, _openvino_model, \.engine, \.torchscript"),
        ("best.torchscript", {"precision": "fp16"}, r"in fp16 is not supported; expected fp32"),
        ("best.torchscript", {"image_chw": (3, 28, 28)}, r"does not take images of .*\(3, 28, 28\)"),
        ("best.torchscript", {"names": ("a", "b")}, r"names: got 2, expected 10"),
        ("best.torchscript", {"mean": (0.1, 0.2)}, r"mean: got \(0\.1, 0\.2\), expected 1 numbers"),
    ],
)
def test_settings_that_cannot_be_had_are_one_line(
    name: str, settings: dict[str, Any], finding: str, lenet: nn.Module, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=finding) as caught:
        export(classifier_job(lenet, **settings), tmp_path / name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_network_that_gives_maps_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"returns \(2, 1, 28, 28\), expected logits"):
        export(classifier_job(nn.Conv2d(1, 1, 1)), tmp_path / "net.onnx")


def test_damaged_artefact_is_one_line(lenet: nn.Module, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"lenet{ending}"
    export(classifier_job(lenet), path)
    cut_off(path / WEIGHTS.get(ending, ""))
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_and_missing_files_are_refused(lenet: nn.Module, tmp_path: Path) -> None:
    export(classifier_job(lenet), tmp_path / "lenet.torchscript")
    with pytest.raises(ConfigError, match=r"got images \(1, 1, 30, 30\), expected"):
        load_classifier(tmp_path / "lenet.torchscript")(torch.zeros(1, 1, 30, 30))
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx do not exist; check the path"):
        load_classifier(tmp_path / "nowhere.onnx")
    (tmp_path / "best.pb").touch()
    with pytest.raises(ConfigError, match=r"best\.pb: unsupported format"):
        load_classifier(tmp_path / "best.pb")


def test_metadata_of_neither_task_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"metadata of best\.onnx: got neither strides nor image_chw"):
        read_metadata('{"format": ".onnx", "precision": "fp32", "names": [], "num_classes": 3}', where="best.onnx")


@pytest.mark.parametrize(
    ("ending", "precision", "most"),
    [
        ("_openvino_model", "fp32", 1e-4),
        ("_openvino_model", "fp16", 2e-3),
        ("_openvino_model", "int8", 0.05),
        ("_ncnn_model", "fp16", 2e-3),
        ("_ncnn_model", "int8", 0.05),
        (".onnx", "int8", 0.05),
    ],
)
def test_every_precision_is_written_verified_and_read_back(
    ending: str, precision: Any, most: float, lenet: nn.Module, tmp_path: Path
) -> None:
    need(ending)
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; see requirements-export.txt")
    path, images = tmp_path / f"lenet{ending}", torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    job = classifier_job(lenet, precision=precision, calibration=images.split(1))
    metadata = export(job, path)
    runtime = load_runtime(path, device=CPU)
    assert isinstance(runtime, LogitsRuntime)
    assert (runtime.metadata, runtime.precision, runtime.num_classes) == (metadata, precision, 10)
    reference = Reference(path=path, source=job.source, images=images, threads=1)
    report = verify(runtime, reference, path=path, batch_size=2)
    assert report.passed
    assert 0 < report.agreement.logits_error < most
    check_is_of(runtime.metadata, job.source, where=path)
    with pytest.raises(CheckpointError, match="was exported from other weights; export it again from these weights"):
        check_is_of(runtime.metadata, classifier_job(LeNet5()).source, where=path)


def test_int8_of_ncnn_leaves_out_what_is_named_by_its_path(lenet: nn.Module, tmp_path: Path) -> None:
    need("_ncnn_model")
    job = classifier_job(lenet, precision="int8", calibration=torch.randn(4, 1, 28, 28).split(1))
    convolutions = [name for name, module in lenet.named_modules() if isinstance(module, nn.Conv2d)]
    skip = replace(job, special=FormatSettings(int8_skip=(convolutions[0],)))
    found = []
    for some in (job, skip):
        export(some, tmp_path / "lenet_ncnn_model")
        layers = read_param(tmp_path / "lenet_ncnn_model/model.ncnn.param")
        found.append({layer.name for layer in layers if layer.number(8)})
    assert found == [set(convolutions), set(convolutions[1:])]


def test_checkpoint_of_a_classifier_is_a_runtime_of_its_logits(lenet: nn.Module, tmp_path: Path) -> None:
    spec = ClassifierSpec(name="lenet5", num_classes=10, image_chw=(1, 28, 28), mean=(0.5,), std=(0.25,))
    names, path = tuple("0123456789"), tmp_path / "best.pt"
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=names, weights=lenet.state_dict()), path)
    runtime = load_runtime(path, device=CPU)
    assert isinstance(runtime, LogitsRuntime)
    assert (runtime.format, runtime.precision, runtime.device) == (".pt", "fp32", CPU)
    assert (runtime.names, runtime.num_classes, runtime.metadata.mean) == (names, 10, (0.5,))
    assert error_of(runtime, lenet) < 1e-6
    assert error_of(load_classifier(path), lenet) < 1e-6
    with pytest.raises(CheckpointError, match=r"best\.pt: got a classifier, expected a detector; give weights"):
        load(path)


def test_metadata_are_read_as_earlier_versions_wrote_them() -> None:
    text = """{"format": ".onnx", "precision": "fp32", "names": [], "num_classes": 3, "image_chw": [1, 8, 8],
        "mean": [], "std": [], "fingerprint": "f", "versions": {"torch": "2"}}"""
    metadata = read_metadata(text, where="best.onnx")
    assert isinstance(metadata, ClassifierMetadata)
    assert (metadata.image_chw, metadata.normalisation, metadata.fingerprint) == ((1, 8, 8), ((0.0,), (1.0,)), "f")
    assert read_metadata(metadata.to_json(), where="best.onnx") == metadata


def test_convolutions_of_ncnn_have_their_paths_though_batch_norms_are_folded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    need("_ncnn_model")
    torch.manual_seed(0)
    model = lively(build_classifier("resnet20")).float()
    export(classifier_job(model, image_chw=(3, 32, 32)), tmp_path / "resnet_ncnn_model")
    layers = read_param(tmp_path / "resnet_ncnn_model/model.ncnn.param")
    expected = {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    found = {layer.name: layer.number(6) or layer.number(2) for layer in layers if layer.name in expected}
    assert found == expected
    assert "layers keep pnnx's names" not in caplog.text
