"""Networks of torchvision and timm by name: built without a download, pruned, and loaded back from data alone."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.classifiers import ClassifierSpec, build_classifier, empty_classifier, load_classifier
from models.classifiers import libraries as library_module
from models.classifiers import load as load_module
from models.classifiers.libraries import LIBRARIES, LayersOnMeta, layers_digest
from models.classifiers.load import logits_shape
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, save_checkpoint

NAMES = ("a", "b", "c")


def spec_of(name: str, *, chw: tuple[int, int, int] = (3, 64, 64)) -> ClassifierSpec:
    return ClassifierSpec.of(name, num_classes=3, image_chw=chw, mean=(0.5,) * chw[0], std=(0.25,) * chw[0])


def stored(model: nn.Module, spec: ClassifierSpec, folder: Path, **changes: Any) -> Path:
    path = folder / "classifier.pt"
    values = {**spec.to_dict(), **changes}
    save_checkpoint(Checkpoint(spec=values, names=NAMES, weights=model.state_dict()), path)
    return path


def test_network_of_torchvision_has_the_classes_asked_for_and_repeats_with_the_seed() -> None:
    torch.manual_seed(3)
    first = build_classifier("torchvision:resnet18", num_classes=3)
    torch.manual_seed(3)
    second = build_classifier("torchvision:resnet18", num_classes=3)
    assert first.fc.out_features == 3
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    assert not torch.equal(first.conv1.weight, build_classifier("torchvision:resnet18", num_classes=3).conv1.weight)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_network_with_auxiliary_outputs_returns_one_tensor_while_training(name: str) -> None:
    model = empty_classifier(f"torchvision:{name}", num_classes=3, in_channels=3).train()
    assert logits_shape(model, (3, 96, 96)) == (2, 3)
    assert not any("aux" in key.lower() for key in model.state_dict())


def test_every_classifier_of_torchvision_can_be_described_without_memory() -> None:
    # One of each family, among them those whose constructors read tensors and those with windows of attention.
    for family in ("regnet_x_400mf", "swin_v2_t", "convnext_tiny", "mnasnet0_5", "squeezenet1_1"):
        model = empty_classifier(f"torchvision:{family}", num_classes=3, in_channels=3)
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert logits_shape(model, (3, 64, 64)) == (2, 3)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vgg11_bn", "convnext_tiny"])
def test_first_convolution_takes_images_of_other_channels(name: str) -> None:
    model = empty_classifier(f"torchvision:{name}", num_classes=3, in_channels=1)
    assert logits_shape(model, (1, 64, 64)) == (2, 3)


def test_replaced_first_convolution_has_weights_of_the_usual_size() -> None:
    torch.manual_seed(0)
    conv = build_classifier("torchvision:resnet18", num_classes=3, in_channels=1).conv1
    assert (conv.in_channels, tuple(conv.weight.shape)) == (1, (64, 1, 7, 7))
    # He et al.: sqrt(2 / fan out), with 64 * 49 outputs of each value.
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("torchvision:resnt18", "no such classifier in torchvision .*; close: torchvision:resnet18"),
        ("torchvision:hub", "no such classifier in torchvision .*; it has .* others, such as torchvision:alexnet"),
        ("torchvision:__init__", "no such classifier"),
        ("keras:resnet18", "no such library 'keras'; known: torchvision, timm"),
        ("resnet18", "no such classifier; close: torchvision:resnet18, .*; known: lenet5, .*, timm:NAME"),
        ("vgg17", "no such classifier; close: vgg1"),
    ],
)
def test_unknown_name_is_refused_with_close_ones(name: str, finding: str) -> None:
    with pytest.raises(ConfigError, match=f"--cfg '{name}': {finding}") as caught:
        build_classifier(name)
    assert "\n" not in str(caught.value)


def test_absent_timm_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match="--cfg timm:NAME needs the package timm .*; pip install timm"):
        build_classifier("timm:resnet18", num_classes=3)


def test_timm_is_called_without_downloads_and_only_with_names_it_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **arguments: Any) -> nn.Module:
        calls.append((name, arguments))
        return nn.Conv2d(arguments["in_chans"], arguments["num_classes"], 1)

    timm = SimpleNamespace(create_model=create_model, list_models=lambda: ["resnet18"], __version__="1.0.9")
    replaced = replace(LIBRARIES["timm"], load=lambda: timm)
    monkeypatch.setattr(library_module, "LIBRARIES", {**LIBRARIES, "timm": replaced})
    spec = spec_of("timm:resnet18")
    assert calls == [("resnet18", {"pretrained": False, "num_classes": 3, "in_chans": 3})]
    assert (spec.arguments, spec.version) == ({"num_classes": 3, "in_chans": 3}, "1.0.9")
    with pytest.raises(ConfigError, match="no such classifier in timm 1.0.9"):
        build_classifier("timm:hf-hub:someone/something")


def test_real_timm_builds_and_loads(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="timm is not installed; see requirements-dev.txt")
    model = build_classifier("timm:resnet18", num_classes=3, in_channels=1).eval()
    loaded = load_classifier(stored(model, spec_of("timm:resnet18", chw=(1, 64, 64)), tmp_path)).model
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "densenet121",
        "efficientnet_b0",
        "shufflenet_v2_x0_5",
        pytest.param("vgg11_bn", marks=pytest.mark.slow),  # its linear layers hold 120 million numbers
    ],
)
def test_pruned_network_of_torchvision_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_classifier(f"torchvision:{name}", num_classes=3).eval()
    graph = ChannelGraph.of(model, image_chw=(3, 64, 64))
    dropped = np.random.default_rng(0).permutation(graph.prunable_ids)[: len(graph.prunable_ids) // 4]
    pruned, images = cut(model, graph, dropped), torch.rand(2, 3, 64, 64)
    loaded = load_classifier(stored(pruned, spec_of(f"torchvision:{name}"), tmp_path)).model
    assert torch.equal(loaded(images), pruned(images))
    assert sum(p.numel() for p in loaded.parameters()) < sum(p.numel() for p in model.parameters())
    # Its layers know their widths, so it can be traced and cut again.
    assert len(ChannelGraph.of(loaded, image_chw=(3, 64, 64)).prunable_ids) == len(graph.prunable_ids) - len(dropped)
    for path, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            assert repr(loaded.get_submodule(path)) == repr(module)


def test_pruned_convolution_with_several_outputs_per_channel_comes_back(tmp_path: Path) -> None:
    def chain(width: int) -> nn.Sequential:
        layers = (nn.Conv2d(3, width, 1), nn.Conv2d(width, 2 * width, 3, groups=width))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 3)).eval()

    small, images = chain(5), torch.rand(2, 3, 8, 8)
    spec = ClassifierSpec(name="", num_classes=3, image_chw=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3)
    loaded = load_classifier(stored(small, spec, tmp_path), skeleton=chain(8)).model
    assert torch.equal(loaded(images), small(images))


def test_description_records_how_the_network_is_built_and_comes_back() -> None:
    spec = spec_of("torchvision:googlenet")
    assert spec.arguments == {"num_classes": 3, "in_channels": 3, "aux_logits": False, "init_weights": True}
    assert spec.version == str(LIBRARIES["torchvision"].load().__version__).partition("+")[0]
    assert ClassifierSpec.from_dict(spec.to_dict(), where="x") == spec
    assert len({spec, replace(spec)}) == 1


def test_description_of_a_network_of_this_project_stays_as_it_was() -> None:
    values = spec_of("vgg11").to_dict()
    assert sorted(values) == ["image_chw", "kind", "mean", "name", "num_classes", "std"]


def test_file_without_a_digest_is_loaded(tmp_path: Path) -> None:
    model = build_classifier("torchvision:resnet18", num_classes=3).eval()
    bare = replace(spec_of("torchvision:resnet18"), arguments={}, version="", layers="")
    assert load_classifier(stored(model, bare, tmp_path)).spec == bare


def test_version_with_other_layers_is_refused_with_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("torchvision:resnet18")
    model = empty_classifier("torchvision:resnet18", num_classes=3, in_channels=3)
    weights = {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
    path = tmp_path / "classifier.pt"
    other = replace(spec, version="0.9.1", layers="0" * 16)
    save_checkpoint(Checkpoint(spec=other.to_dict(), names=NAMES, weights=weights), path)
    finding = rf"torchvision 0.9.1 has other layers .* installed {spec.version}; pip install torchvision==0.9.1"
    with pytest.raises(CheckpointError, match=finding):
        load_classifier(path)
    # Another version with the same layers is loaded.
    monkeypatch.setattr(load_module, "library_version", lambda name: "99.0")
    same = replace(spec, version="0.9.1")
    save_checkpoint(Checkpoint(spec=same.to_dict(), names=NAMES, weights=weights), path)
    assert load_classifier(path).spec.version == "0.9.1"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"name": "torchvision:os.system"}, "no such classifier"),
        ({"name": "os:system"}, "no such library 'os'"),
        ({"arguments": {"weights": "DEFAULT"}}, "got 'weights': 'DEFAULT', expected num_classes=3, in_channels=3"),
        ({"arguments": {"num_classes": 4}}, "got 'num_classes': 4, expected"),
        ({"arguments": {"num_classes": 3.0}}, "got 'num_classes': 3.0, expected"),
        ({"arguments": {"a\nb": 1}}, "expected num_classes=3"),
        ({"num_classes": 2**31 - 1, "arguments": {}}, "has other layers"),
        ({"arguments": [1]}, "its arguments are list"),
        ({"version": "1\n2"}, "version: got .* expected one word"),
        ({"layers": "x; rm"}, "layers: got .* expected one word"),
        ({"layers": 1.5}, "has other layers"),
        ({"version": None}, "version is None, expected text"),
    ],
)
def test_file_of_a_stranger_calls_nothing_but_the_named_constructor(
    changes: dict[str, Any], finding: str, tmp_path: Path
) -> None:
    model = build_classifier("vanilla", num_classes=3)
    path = stored(model, spec_of("torchvision:resnet18"), tmp_path, **changes)
    with pytest.raises(CheckpointError, match=finding) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_constants_are_computed_where_layers_take_no_memory() -> None:
    with LayersOnMeta():
        layer, constant = nn.Linear(10**9, 10**6), torch.arange(3).tolist()
    assert layer.weight.is_meta
    assert constant == [0, 1, 2]


def test_network_with_constants_that_no_file_stores_gets_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    class Windowed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("window", torch.ones(4), persistent=False)

    replaced = replace(LIBRARIES["timm"], load=lambda: None, names=lambda _: ["w"], create=lambda *_: Windowed())
    monkeypatch.setattr(library_module, "LIBRARIES", {"timm": replaced})
    state = torch.get_rng_state()
    model = empty_classifier("timm:w", num_classes=3, in_channels=3)
    assert model.window.tolist() == [1, 1, 1, 1]
    assert torch.equal(torch.get_rng_state(), state)


def test_digest_depends_on_names_and_shapes_alone() -> None:
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    assert layers_digest(first) == layers_digest(second) == layers_digest(nn.Linear(2, 3, device="meta"))
    assert layers_digest(nn.Sequential(first)) != layers_digest(first) != layers_digest(nn.Linear(3, 3))


def test_image_that_a_network_checks_itself_is_a_runtime_error() -> None:
    model = empty_classifier("torchvision:vit_b_16", num_classes=3, in_channels=3)
    with pytest.raises(RuntimeError, match="[Ww]rong image height"):
        logits_shape(model, (3, 64, 64))
