"""A YOLOv5 pickle made here, so that reading one is tested without any downloaded file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from models.load import load_model
from utils.errors import CheckpointError

YAML = {
    "nc": 2,
    "ch": 3,
    "depth_multiple": 1.0,
    "width_multiple": 1.0,
    "anchors": [[1, 2, 3, 4]],
    "backbone": [[-1, 1, "Conv", [8, 3, 2]]],
    "head": [[[0], 1, "Detect", ["nc", "anchors"]]],
}


class Conv(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = activation


class Detect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stride = torch.tensor([2.0])
        self.m = nn.ModuleList([nn.Conv2d(8, 14, 1)])
        # Autoanchor's, in cells: not those of the YAML.
        self.register_buffer("anchors", torch.tensor([[[2.0, 3.0], [4.0, 5.0]]]))


class Model(nn.Module):
    def __init__(self, *, names: object, activation: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(activation), Detect())
        self.yaml = YAML
        self.names = names


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Saves a checkpoint whose classes claim to be those of YOLOv5, as its own code would."""
    for module, kinds in {"models.common": [Conv], "models.yolo": [Detect, Model]}.items():
        fake = ModuleType(module)
        monkeypatch.setitem(sys.modules, module, fake)
        for kind in kinds:
            monkeypatch.setattr(kind, "__module__", module)
            setattr(fake, kind.__name__, kind)

    def write(*, change: Callable[[Model], object] = lambda model: None, **changes: object) -> Path:
        torch.manual_seed(0)
        settings = {"names": ["a", "b"], "activation": nn.SiLU(), **changes}
        model, average = (Model(**settings).half() for _ in range(2))
        change(average)
        torch.save({"epoch": 3, "model": model, "ema": average, "optimizer": None}, tmp_path / "yolo.pt")
        write.average = average
        return tmp_path / "yolo.pt"

    return write


def test_moving_average_names_and_autoanchors_come_across(save) -> None:
    loaded = load_model(save())
    expected = save.average.model[0].conv.weight.float()
    assert torch.equal(loaded.model.get_parameter("model.0.conv.weight"), expected)
    assert loaded.names == ("a", "b")
    assert loaded.model.spec.anchors == ((4.0, 6.0, 8.0, 10.0),)
    assert loaded.model.strides == (2,)


def test_names_of_v7_are_a_mapping(save) -> None:
    assert load_model(save(names={1: "b", 0: "a"})).names == ("a", "b")


def test_other_activations_are_refused_not_ignored(save) -> None:
    with pytest.raises(CheckpointError, match=r"Conv model\.0 uses Hardswish, expected SiLU"):
        load_model(save(activation=nn.Hardswish()))


def test_names_that_disagree_with_the_head_are_refused(save) -> None:
    with pytest.raises(CheckpointError, match="do not fill their own network"):
        load_model(save(names=["a", "b", "c"]))


def test_missing_names_are_refused(save) -> None:
    with pytest.raises(CheckpointError, match="no class names"):
        load_model(save(names=None))


def test_network_that_contains_itself_is_refused(save) -> None:
    def loop(model: Model) -> None:
        model.model._modules["1"] = model

    with pytest.raises(CheckpointError, match="no Detect layer"):
        load_model(save(change=loop))


def test_activation_shared_by_all_blocks_is_checked_in_each(save) -> None:
    shared = nn.ReLU()

    def share(model: Model) -> None:
        model._modules["first"] = shared
        model.model[0].act = shared

    with pytest.raises(CheckpointError, match="uses ReLU"):
        load_model(save(change=share))
