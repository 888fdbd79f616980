"""Starting weights: what fits is copied, what does not is named, and nothing of a file is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.classifiers import ClassifierSpec, build_classifier, start_weights_
from utils.errors import CheckpointError
from utils.storage.checkpoint import Checkpoint, save_checkpoint


def saved(content: Any, folder: Path, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path, **options)
    return path


def network(num_classes: int = 10) -> nn.Module:
    return build_classifier("vanilla", num_classes=num_classes)


def test_all_tensors_of_the_same_network_are_copied(tmp_path: Path) -> None:
    source, target = network(), network()
    report = start_weights_(target, saved(source.state_dict(), tmp_path))
    assert len(report.copied) == len(source.state_dict())
    assert not report.missing + report.other_shapes + report.unused
    assert all(map(torch.equal, source.state_dict().values(), target.state_dict().values()))


def test_head_of_another_number_of_classes_stays_random(tmp_path: Path) -> None:
    source, target = network(10), network(3)
    before = target.classifier.weight.clone()
    report = start_weights_(target, saved(source.state_dict(), tmp_path))
    assert report.other_shapes == ("classifier.weight", "classifier.bias")
    assert torch.equal(target.classifier.weight, before)
    assert torch.equal(target.features[0].weight, source.features[0].weight)
    total = len(source.state_dict())
    assert report.line() == (
        f"{total - 2} of {total} tensors from {tmp_path / 'weights.pth'}; "
        "2 other shape, left random: classifier.weight, classifier.bias"
    )


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_in_the_file_of_a_training_script_is_found(key: str, tmp_path: Path) -> None:
    source, target = network(), network()
    state = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    report = start_weights_(target, saved({key: state, "epoch": 3}, tmp_path))
    assert not report.unused
    assert torch.equal(target.classifier.weight, source.classifier.weight)


def test_file_of_torch_before_1_6_is_read(tmp_path: Path) -> None:
    source, target = network(), network()
    start_weights_(target, saved(source.state_dict(), tmp_path, _use_new_zipfile_serialization=False))
    assert torch.equal(target.classifier.weight, source.classifier.weight)


def test_old_names_in_files_of_densenet_are_those_of_today(tmp_path: Path) -> None:
    layer = nn.Module()
    layer.norm1, layer.conv2 = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
    target = nn.ModuleDict({"block": nn.ModuleDict({"denselayer1": layer})})
    names = {name: name.replace("norm1", "norm.1").replace("conv2", "conv.2") for name in target.state_dict()}
    state = {old: torch.full_like(target.state_dict()[name], 3) for name, old in names.items()}
    assert "block.denselayer1.norm.1.weight" in state
    report = start_weights_(target, saved(state, tmp_path))
    assert report.copied == tuple(names)
    assert layer.norm1.weight.tolist() == [3, 3]


def test_own_checkpoint_gives_its_average(tmp_path: Path) -> None:
    source, average, target = network(), network(), network()
    spec = ClassifierSpec(name="vanilla", num_classes=10, image_chw=(3, 32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)
    path = tmp_path / "own.pt"
    names = tuple("0123456789")
    save_checkpoint(
        Checkpoint(spec=spec.to_dict(), names=names, weights=source.state_dict(), ema=average.state_dict()), path
    )
    start_weights_(target, path)
    assert torch.equal(target.classifier.weight, average.classifier.weight)


def test_missing_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    state["head.weight"] = state.pop("classifier.weight")
    report = start_weights_(network(), saved(state, tmp_path))
    assert (report.missing, report.unused) == (("classifier.weight",), ("head.weight",))
    assert "1 not in the file, left random: classifier.weight; 1 not in the network, unused: head" in report.line()


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ({"a": torch.zeros(2)}, "none of its 1 tensors, such as a, fits this network with"),
        # Only a count of steps has the same name and shape.
        ({"features.1.num_batches_tracked": torch.tensor(3)}, "none of its 1 tensors"),
        ({"classifier.bias": torch.full((10,), float("nan"))}, "10 of 10 values of classifier.bias are NaN"),
        ({"classifier.bias": torch.zeros(10, dtype=torch.int64)}, "none of its 1 tensors"),
        ({"classifier.bias": torch.zeros(10, dtype=torch.complex64)}, "none of its 1 tensors"),
        ({"classifier.bias": torch.zeros(10).to_sparse()}, "none of its 1 tensors"),
        ({"epoch": 3}, "no state dict of plain tensors; save one with"),
        ([1], "no state dict of plain tensors"),
        (nn.Linear(2, 2), "no state dict of plain tensors"),
    ],
)
def test_file_without_usable_weights_is_refused(content: Any, finding: str, tmp_path: Path) -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=finding) as caught:
        start_weights_(model, saved(content, tmp_path))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("is_zip", [True, False])
def test_truncated_file_is_refused(is_zip: bool, tmp_path: Path) -> None:
    path = saved(network().state_dict(), tmp_path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError):
        start_weights_(network(), path)
    with pytest.raises(CheckpointError, match="do not exist"):
        start_weights_(network(), tmp_path / "absent.pth")
