"""Files of classifiers: what goes in comes out, pruned or not, and what is no classifier's is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import TINY_CFG
from torch import Tensor, nn

from models.classifiers import ClassifierSpec, build_classifier, load_classifier
from models.classifiers.load import logits_shape
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

NAMES = tuple("0123456789")


def spec_of(name: str, *, chw: tuple[int, int, int] = (3, 32, 32)) -> ClassifierSpec:
    return ClassifierSpec(name=name, num_classes=10, image_chw=chw, mean=(0.5,) * chw[0], std=(0.25,) * chw[0])


def stored(model: nn.Module, spec: ClassifierSpec, folder: Path, **changes: Any) -> Path:
    path = folder / "classifier.pt"
    values: dict[str, Any] = {"spec": spec.to_dict(), "names": NAMES, "weights": model.state_dict(), **changes}
    save_checkpoint(Checkpoint(**values), path)
    return path


def test_classifier_comes_back_as_it_was(tmp_path: Path) -> None:
    model, images = build_classifier("resnet20").eval(), torch.rand(2, 3, 32, 32)
    loaded = load_classifier(stored(model, spec_of("resnet20"), tmp_path))
    assert torch.equal(loaded.model(images), model(images))
    assert (loaded.spec, loaded.names) == (spec_of("resnet20"), NAMES)
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("name", ["vgg11", "densenet22", "resnet20", "preresnet29", "vanilla", "lenet5"])
def test_pruned_classifier_needs_nothing_but_its_name_and_weights(name: str, tmp_path: Path) -> None:
    chw = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    model = build_classifier(name, in_channels=chw[0]).eval()
    graph = ChannelGraph.of(model, image_chw=chw)
    dropped = np.random.default_rng(0).permutation(graph.prunable_ids)[: len(graph.prunable_ids) // 4]
    pruned, images = cut(model, graph, dropped), torch.rand(2, *chw)
    loaded = load_classifier(stored(pruned, spec_of(name, chw=chw), tmp_path)).model
    assert torch.equal(loaded(images), pruned(images))
    # Its layers know their widths, so it can be traced and cut again.
    again = ChannelGraph.of(loaded, image_chw=chw)
    assert len(again.prunable_ids) == len(graph.prunable_ids) - len(dropped)
    for path, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            assert repr(loaded.get_submodule(path)) == repr(module)


def test_pruned_depthwise_convolution_gets_its_groups_back(tmp_path: Path) -> None:
    def chain(width: int) -> nn.Sequential:
        layers = (nn.Conv2d(3, width, 1), nn.Conv2d(width, width, 3, groups=width), nn.BatchNorm2d(width))
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()

    small, images = chain(5), torch.rand(2, 3, 8, 8)
    path = stored(small, spec_of("", chw=(3, 8, 8)), tmp_path)
    loaded = load_classifier(path, skeleton=chain(8)).model
    assert torch.equal(loaded(images), small(images))


def test_file_of_a_network_of_ones_own_asks_for_it(tmp_path: Path) -> None:
    path = stored(build_classifier("vanilla"), spec_of(""), tmp_path)
    with pytest.raises(CheckpointError, match="name no network of this project; load them into one with skeleton="):
        load_classifier(path)


def test_file_of_a_detector_is_refused(tmp_path: Path) -> None:
    detector = build_model(ModelSpec.from_yaml(TINY_CFG))
    path = tmp_path / "detector.pt"
    save_checkpoint(Checkpoint(spec=detector.spec.to_dict(), names=NAMES, weights=detector.state_dict()), path)
    with pytest.raises(CheckpointError, match=r"detector.pt: not a classifier; give one"):
        load_classifier(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = stored(build_classifier("vgg11"), spec_of("resnet20"), tmp_path)
    with pytest.raises(CheckpointError, match="do not fit the network resnet20 .*; give another file"):
        load_classifier(path)


def test_widths_that_do_not_follow_each_other_are_refused(tmp_path: Path) -> None:
    model = build_classifier("vanilla")
    weights = {**model.state_dict(), "features.4.weight": torch.zeros(32, 31, 3, 3)}
    path = stored(model, spec_of("vanilla"), tmp_path, weights=weights)
    with pytest.raises(CheckpointError, match="do not fit the network vanilla"):
        load_classifier(path)


def test_other_number_of_classes_than_told_is_refused(tmp_path: Path) -> None:
    path = stored(build_classifier("vanilla", num_classes=9), spec_of("vanilla"), tmp_path)
    with pytest.raises(CheckpointError, match=r"logits of shape \(9,\), expected \(10,\)"):
        load_classifier(path)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda weight: weight.long(), "is dense int64 on cpu, expected dense numbers such as float32"),
        (lambda weight: weight.to(torch.complex64), "is dense complex64 on cpu, expected dense numbers"),
        (lambda weight: weight.to_sparse(), "is sparse float32 on cpu, expected dense numbers"),
        (lambda weight: weight.to("meta"), "is dense float32 on meta, expected dense numbers"),
        (lambda weight: weight[:, :, None], "do not fit the network vanilla"),
        (lambda weight: weight[:0], "do not fit the network vanilla"),
    ],
)
def test_weights_that_are_no_numbers_of_a_layer_are_refused(
    change: Callable[[Tensor], Tensor], finding: str, tmp_path: Path
) -> None:
    model = build_classifier("vanilla")
    weights = model.state_dict()
    weights["features.0.weight"] = change(weights["features.0.weight"])
    path = stored(model, spec_of("vanilla"), tmp_path, weights=weights)
    with pytest.raises(CheckpointError, match=finding) as caught:
        load_classifier(path)
    assert "\n" not in str(caught.value)


def test_step_counts_that_are_no_whole_numbers_are_refused(tmp_path: Path) -> None:
    model = build_classifier("resnet20")
    weights = {name: value.float() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="num_batches_tracked is dense float32 .*expected .* such as int64"):
        load_classifier(stored(model, spec_of("resnet20"), tmp_path, weights=weights))


def test_made_up_number_of_classes_takes_no_memory(tmp_path: Path) -> None:
    path = stored(build_classifier("vanilla"), replace(spec_of("vanilla"), num_classes=10**9), tmp_path)
    with pytest.raises(CheckpointError, match=r"logits of shape \(10,\), expected \(1000000000,\)"):
        load_classifier(path)


def test_other_number_of_names_than_classes_is_refused(tmp_path: Path) -> None:
    path = stored(build_classifier("vanilla"), spec_of("vanilla"), tmp_path, names=NAMES[:9])
    with pytest.raises(CheckpointError, match="name 9 classes, expected 10 names, one for each; use an undamaged"):
        load_classifier(path)


def test_file_of_an_unknown_network_is_refused(tmp_path: Path) -> None:
    path = stored(build_classifier("vanilla"), spec_of("resnet21"), tmp_path)
    with pytest.raises(
        CheckpointError, match="classifier.pt: .*'resnet21': no such classifier; close: .*; known: lenet5"
    ):
        load_classifier(path)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"std": [0.2, 0.2]}, "std: got .*, expected 3 numbers"),
        ({"std": [0.0, 0.2, 0.2]}, "expected positive numbers"),
        ({"std": [0.2, float("nan"), 0.2]}, "expected positive numbers"),
        ({"std": [0.2, float("inf"), 0.2]}, "expected positive numbers"),
        ({"mean": [0.2, float("nan"), 0.2]}, "mean: got .*, expected finite numbers"),
        ({"image_chw": [3, 10**20, 32]}, "expected channels, height and width"),
        ({"num_classes": 10**20}, "expected 2 to 2147483647"),
        ({"image_chw": [32, 32]}, "expected channels, height and width"),
        ({"num_classes": 1}, "expected 2 to 2147483647"),
        ({"num_classes": "ten"}, "its description: num_classes is 'ten', expected"),
        ({"more": 1}, "unknown key 'more'; known"),
    ],
)
def test_description_that_cannot_be_is_refused(changes: dict[str, Any], finding: str) -> None:
    values = {**spec_of("vgg11").to_dict(), **changes}
    with pytest.raises(CheckpointError, match=f"weights x: .*{finding}"):
        ClassifierSpec.from_dict(values, where="weights x")


def test_description_without_a_value_is_refused() -> None:
    values = {name: value for name, value in spec_of("vgg11").to_dict().items() if name != "mean"}
    with pytest.raises(CheckpointError, match="weights x has no 'mean'; use an undamaged copy"):
        ClassifierSpec.from_dict(values, where="weights x")


def test_shape_of_logits_is_found_without_computing() -> None:
    model = build_classifier("vgg11", num_classes=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert logits_shape(model, (3, 32, 32)) == (2, 3)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        logits_shape(build_classifier("lenet5"), (1, 32, 32))


def test_checkpoint_of_a_classifier_is_read_without_code(tmp_path: Path) -> None:
    path = stored(build_classifier("vanilla"), spec_of("vanilla"), tmp_path)
    assert load_checkpoint(path).spec["name"] == "vanilla"
    with pytest.raises(ConfigError, match="expected 3 numbers"):
        replace(spec_of("vanilla"), mean=(0.5,))
