"""Classifiers on every runtime give the logits of the network; what cannot be exported is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cut_oracle import cuttable_ids
from exporting import cut_off
from mask_oracle import lively
from torch import Tensor, nn

from deploy.classifier.export import Logits, export_classifier, logits_error
from deploy.classifier.metadata import ClassifierMetadata, ClassifierSettings, weights_fingerprint
from deploy.formats import load_classifier
from models.classifiers import DenseNetCifar, LeNet5
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import CheckpointError, ConfigError

PACKAGES = {".onnx": ("onnx", "onnxruntime"), ".torchscript": (), "_ncnn_model": ("ncnn", "pnnx")}
DIGITS = ClassifierSettings(image_chw=(1, 28, 28))


@pytest.fixture(params=list(PACKAGES))
def ending(request: pytest.FixtureRequest) -> str:
    """Each format whose packages are here."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
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


def exported_error(model: nn.Module, path: Path, settings: ClassifierSettings) -> float:
    """Of the artefact, read back, on images of its own."""
    export_classifier(model, path, settings=settings)
    images = torch.rand(3, *settings.image_chw, generator=torch.Generator().manual_seed(5))
    return logits_error(load_classifier(path), Logits(model), images)


def test_logits_of_lenet_are_those_of_the_network(lenet: nn.Module, ending: str, tmp_path: Path) -> None:
    assert exported_error(lenet, tmp_path / f"lenet{ending}", DIGITS) < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [f"lenet{ending}"]


def test_logits_of_a_pruned_densenet_are_those_of_the_network(ending: str, tmp_path: Path) -> None:
    settings = ClassifierSettings(image_chw=(3, 32, 32))
    assert exported_error(pruned_densenet(), tmp_path / f"dense{ending}", settings) < 1e-4


def test_logits_of_a_torchvision_network_are_those_of_the_network(ending: str, tmp_path: Path) -> None:
    settings = ClassifierSettings(image_chw=(3, 32, 32))
    assert exported_error(mobilenet(), tmp_path / f"mobilenet{ending}", settings) < 1e-4


def test_metadata_are_read_back(lenet: nn.Module, ending: str, tmp_path: Path) -> None:
    settings = ClassifierSettings(image_chw=(1, 28, 28), names=tuple("0123456789"), mean=(0.13,), std=(0.31,))
    path = tmp_path / f"lenet{ending}"
    written = export_classifier(lenet, path, settings=settings)
    found = load_classifier(path).metadata
    assert found == written
    assert (found.format, found.num_classes, found.image_chw) == (ending, 10, (1, 28, 28))
    assert (found.names, found.mean, found.std) == (tuple("0123456789"), (0.13,), (0.31,))
    assert found.fingerprint == weights_fingerprint(lenet)


def test_renamed_ncnn_folder_still_loads(lenet: nn.Module, tmp_path: Path) -> None:
    for package in PACKAGES["_ncnn_model"]:
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
    export_classifier(lenet, tmp_path / "lenet_ncnn_model", settings=DIGITS)
    renamed = (tmp_path / "lenet_ncnn_model").rename(tmp_path / "digits_v2")
    assert logits_error(load_classifier(renamed), Logits(lenet), torch.rand(2, 1, 28, 28)) < 1e-4


def test_network_is_not_touched(tmp_path: Path) -> None:
    model = LeNet5().double().train()
    export_classifier(model, tmp_path / "lenet.torchscript", settings=DIGITS)
    assert model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float64 for parameter in model.parameters())


@pytest.mark.parametrize("half", [".onnx", "_ncnn_model"])
def test_sixteen_bits_halve_the_weights(lenet: nn.Module, half: str, tmp_path: Path) -> None:
    for package in PACKAGES[half]:
        pytest.importorskip(package, reason=f"{package} is not installed; see requirements-export.txt")
    path = tmp_path / f"lenet{half}"
    size = {}
    for precision in ("fp32", "fp16"):
        export_classifier(lenet, path, settings=ClassifierSettings(image_chw=(1, 28, 28), precision=precision))
        files = [path] if path.is_file() else [path / "model.ncnn.bin"]
        size[precision] = sum(file.stat().st_size for file in files)
    assert size["fp16"] < 0.65 * size["fp32"]
    assert load_classifier(path).metadata.precision == "fp16"


def test_given_images_are_compared_too(lenet: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logits differ .* by nan"):
        export_classifier(
            lenet, tmp_path / "lenet.torchscript", settings=DIGITS, images=torch.full((1, 1, 28, 28), torch.nan)
        )
    assert list(tmp_path.iterdir()) == []


class Drifting(nn.Module):
    """Gives other numbers at each call, as a trace cannot."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1)[:, :2] + self.calls


def test_logits_of_another_network_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"logits differ from the network's by .*at most 0.0001 allowed"):
        export_classifier(Drifting(), tmp_path / "net.torchscript", settings=DIGITS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "settings", "finding"),
    [
        ("best.pb", {}, r"unsupported format; known: _ncnn_model, \.onnx, \.torchscript"),
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
        export_classifier(
            lenet, tmp_path / name, settings=ClassifierSettings(**{"image_chw": (1, 28, 28), **settings})
        )
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_network_that_gives_maps_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"returns \(2, 1, 28, 28\), expected logits"):
        export_classifier(nn.Conv2d(1, 1, 1), tmp_path / "net.onnx", settings=DIGITS)


def test_damaged_artefact_is_one_line(lenet: nn.Module, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"lenet{ending}"
    export_classifier(lenet, path, settings=DIGITS)
    cut_off(path if path.is_file() else path / "model.ncnn.bin")
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_and_missing_files_are_refused(lenet: nn.Module, tmp_path: Path) -> None:
    export_classifier(lenet, tmp_path / "lenet.torchscript", settings=DIGITS)
    with pytest.raises(ConfigError, match=r"got images \(1, 1, 30, 30\), expected"):
        load_classifier(tmp_path / "lenet.torchscript")(torch.zeros(1, 1, 30, 30))
    with pytest.raises(CheckpointError, match=r"nowhere\.onnx does not exist; check the path"):
        load_classifier(tmp_path / "nowhere.onnx")
    with pytest.raises(ConfigError, match=r"best\.pb: unsupported format"):
        load_classifier(tmp_path / "best.pb")


def test_metadata_of_a_detector_are_no_classifier() -> None:
    with pytest.raises(CheckpointError, match=r"metadata of best\.onnx: image_chw: got None"):
        ClassifierMetadata.from_json(
            '{"format": ".onnx", "precision": "fp32", "names": [], "num_classes": 3}', where="best.onnx"
        )
