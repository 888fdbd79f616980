"""Which filters RePr may drop, which of them it drops, and what goes with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stepping import SmallNet, small_net
from tiny import TINY_CFG
from torch import Tensor, nn

from models.classifiers import DenseNetCifar, LeNet5
from models.copies import tensors_by_name
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.repr.ranked_filters import RankedLayer, most_overlapping, ranked_layers, zeros_of
from utils.errors import PruningError


class Residual(nn.Module):
    """Two convolutions whose outputs are added, each with a batch norm, and one more batch norm after the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.norm_a = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.norm_sum = nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.norm_a(self.a(x)) + self.norm_b(self.b(x))
        return self.last(self.norm_sum(x).relu().mean((2, 3)))


def layers_of(model: nn.Module) -> dict[str, RankedLayer]:
    return {layer.name: layer for layer in ranked_layers(model, ChannelGraph.of(model))}


def zeros_with(model: nn.Module, rows: dict[str, list[int]]) -> dict[str, list[int]]:
    """By name of each tensor, the channels that go with filters."""
    arrays = {name: np.array(values) for name, values in rows.items()}
    zeros = zeros_of(model, list(layers_of(model).values()), arrays)
    return {name: np.flatnonzero(mask.flatten()).tolist() for name, mask in zeros.items()}


def set_second_(model: SmallNet, filters: Tensor) -> None:
    """The filters (8, 54) of the second layer."""
    with torch.no_grad():
        model.second.weight.copy_(filters.view(model.second.weight.shape))


def test_filters_before_a_convolution_of_groups_have_the_norm_channel_behind_them() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)),
        *(nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)),
    )
    found = layers_of(model)
    assert list(found) == ["1"]
    assert {name: sources.tolist() for name, sources in found["1"].norms.items()} == {"2": [0, 1, 2, 3]}


def test_first_convolution_and_linear_layers_are_exempt() -> None:
    assert list(layers_of(small_net())) == ["second", "third"]


def test_first_and_last_layers_of_a_detector_are_exempt() -> None:
    model = build_model(ModelSpec.from_yaml(TINY_CFG))
    convolutions = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert convolutions - set(layers_of(model)) == {"model.0.conv", "model.9.m.0", "model.9.m.1"}


def test_layers_that_do_not_train_are_exempt() -> None:
    model = small_net()
    model.second.requires_grad_(False)
    assert list(layers_of(model)) == ["third"]


def test_network_without_a_second_convolution_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(PruningError, match="no convolution whose filters RePr may drop.*; give a deeper network"):
        layers_of(model)


def test_network_of_other_images_is_ranked() -> None:
    model = LeNet5()
    assert [layer.name for layer in ranked_layers(model, ChannelGraph.of(model, image_chw=(1, 28, 28)))] == [
        "features.3"
    ]


def test_filters_that_repeat_each_other_go_first() -> None:
    model = small_net()
    set_second_(model, torch.eye(8, 54))
    with torch.no_grad():
        model.second.weight[5] = -3 * model.second.weight[2]
        model.third.weight.copy_(torch.eye(10, 72).view_as(model.third.weight))
    found = most_overlapping(model, list(layers_of(model).values()), count=2)
    assert {name: rows.tolist() for name, rows in found.items()} == {"second": [2, 5]}


def test_layers_are_ranked_together() -> None:
    model = small_net()
    set_second_(model, torch.eye(8, 54))
    with torch.no_grad():
        model.third.weight.copy_(torch.eye(10, 72).view_as(model.third.weight))
        model.second.weight[1] = model.second.weight[0]  # overlap 1 / 8
        model.third.weight[:3] = model.third.weight[3]  # overlap 3 / 10
    found = most_overlapping(model, list(layers_of(model).values()), count=5)
    assert {name: rows.tolist() for name, rows in found.items()} == {"second": [0], "third": [0, 1, 2, 3]}


def test_every_layer_keeps_its_best_filter() -> None:
    model = small_net()
    found = most_overlapping(model, list(layers_of(model).values()), count=18)
    assert {name: len(rows) for name, rows in found.items()} == {"second": 7, "third": 9}


def test_weights_that_are_no_numbers_are_refused() -> None:
    model = small_net()
    with torch.no_grad():
        model.third.weight[4, 0, 0, 0] = torch.nan
    with pytest.raises(PruningError, match=r"layer third: weights of .* of 10 channels are NaN or infinite"):
        most_overlapping(model, list(layers_of(model).values()), count=3)


def test_bias_and_batch_norm_go_with_a_filter() -> None:
    assert zeros_with(small_net(), {"second": [1, 6], "third": [0]}) == {
        "second.weight": [1, 6],
        "second.bias": [1, 6],
        **{f"norm2.{name}": [1, 6] for name in ("weight", "bias", "running_mean", "running_var")},
        "third.weight": [0],
        **{f"norm3.{name}": [0] for name in ("weight", "bias", "running_mean", "running_var")},
    }


def test_batch_norm_after_an_addition_stays_and_that_before_it_goes() -> None:
    zeros = zeros_with(Residual(), {"a": [3]})
    assert {name.split(".")[0] for name in zeros} == {"a", "norm_a"}


def test_batch_norms_behind_a_concat_go_channel_by_channel() -> None:
    model = DenseNetCifar(depth=7, growth=2)
    zeros = zeros_with(model, {"features.1.conv": [1]})
    # Before the first layer's two channels are the 16 of the stem.
    assert zeros["features.2.0.weight"] == [17]
    assert zeros["features.1.conv.weight"] == [1]
    assert all(mask.shape[0] == tensors_by_name(model)[name].shape[0] for name, mask in _masks(model).items())


def test_batch_norm_over_several_layers_has_the_channels_of_all() -> None:
    model = DenseNetCifar(depth=10, growth=2)
    zeros = zeros_with(model, {"features.1.conv": [1], "features.2.conv": [0]})
    assert zeros["features.3.0.weight"] == [17, 18]


def _masks(model: nn.Module) -> dict[str, Tensor]:
    return zeros_of(model, list(layers_of(model).values()), {"features.1.conv": np.array([1])})
