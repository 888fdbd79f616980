"""Which single weights are pruned, by hand and on every kind of network."""

from __future__ import annotations

import logging

import pytest
import torch
from stepping import small_net
from tiny import TINY_CFG
from torch import nn

from models.classifiers import LeNet5
from models.detector import build_model
from models.spec import ModelSpec
from pruning.choices import Scope
from pruning.zeros.masks import (
    UnstructuredSettings,
    apply_masks_,
    l1_masks,
    prunable_weights,
    sparsity_table,
    zero_masks,
)
from utils.errors import ConfigError, PruningError


def two_layers() -> nn.Sequential:
    """Weights 1 -2 3 -4 and 10 20 30 40."""
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.BatchNorm2d(2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -2, 3, -4]).view(2, 1, 1, 2))
        model[2].weight.copy_(torch.tensor([[10.0, 20], [30, 40]]))
    return model


def kept_by(sparsity: float, scope: Scope = "global", protect: tuple[str, ...] = ()) -> dict[str, list[int]]:
    masks = l1_masks(two_layers(), UnstructuredSettings(sparsity=sparsity, scope=scope, protect=protect))
    return {name: mask.flatten().int().tolist() for name, mask in masks.items()}


def test_global_threshold_takes_the_smallest_wherever_they_are() -> None:
    assert kept_by(0.375) == {"0.weight": [0, 0, 0, 1], "2.weight": [1, 1, 1, 1]}


def test_scope_of_layers_takes_the_same_share_of_each() -> None:
    assert kept_by(0.5, "layer") == {"0.weight": [0, 0, 1, 1], "2.weight": [0, 0, 1, 1]}


def test_protected_layers_have_no_mask() -> None:
    assert kept_by(0.5, protect=("0*",)) == {"2.weight": [0, 0, 1, 1]}


def test_sparsity_zero_keeps_all() -> None:
    assert kept_by(0.0) == {"0.weight": [1, 1, 1, 1], "2.weight": [1, 1, 1, 1]}


def test_network_is_not_changed_by_making_masks() -> None:
    model = small_net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    l1_masks(model, UnstructuredSettings(sparsity=0.9))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_earlier_masks_left_out_stays_out() -> None:
    start = {"2.weight": torch.tensor([[True, True], [True, False]])}
    masks = l1_masks(two_layers(), UnstructuredSettings(sparsity=0.25), start=start)
    assert masks["2.weight"].tolist() == [[True, True], [True, False]]
    assert masks["0.weight"].flatten().tolist() == [False, False, True, True]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.1, 0.9, 0.99])
@pytest.mark.parametrize("make", [LeNet5, lambda: build_model(ModelSpec.from_yaml(TINY_CFG))])
def test_asked_share_of_every_network_becomes_zero(make: type[nn.Module], sparsity: float, scope: Scope) -> None:
    model = make().to(memory_format=torch.channels_last)
    apply_masks_(model, l1_masks(model, UnstructuredSettings(sparsity=sparsity, scope=scope)))
    weights = prunable_weights(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    # In the scope of layers each rounds for itself.
    assert abs(zeros - sparsity * total) <= (1 if scope == "global" else len(weights))


def test_masks_of_zeros_are_those_that_made_them() -> None:
    model = two_layers()
    masks = l1_masks(model, UnstructuredSettings(sparsity=0.25))
    assert zero_masks(model) == {}
    apply_masks_(model, masks)
    found = zero_masks(model)
    assert list(found) == ["0.weight"]
    assert torch.equal(found["0.weight"], masks["0.weight"])


def test_table_counts_by_hand() -> None:
    model = two_layers()
    apply_masks_(model, l1_masks(model, UnstructuredSettings(sparsity=0.375)))
    lines = [line.split() for line in sparsity_table(model).splitlines()[1:]]
    assert lines == [["0.weight", "4", "3", "75.0%"], ["2.weight", "4", "0", "0.0%"], ["all", "8", "3", "37.5%"]]


def test_weights_that_two_layers_share_are_pruned_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    assert list(prunable_weights(model)) == ["0.weight"]


def test_layer_without_weights_left_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert kept_by(0.5)["0.weight"] == [0, 0, 0, 0]
    assert "1 layers have no weight left, first 0.weight; lower the sparsity" in caplog.text


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match="expected a share from 0 up to, not including, 1, such as 0.9"):
        UnstructuredSettings(sparsity=sparsity)


def test_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(PruningError, match="--protect 7 matches no layer; the layers include 0, 2; use"):
        kept_by(0.5, protect=("7",))


def test_network_with_nothing_to_prune_is_refused() -> None:
    with pytest.raises(PruningError, match="no convolution or linear layer that may be pruned; give fewer"):
        kept_by(0.5, protect=("*",))


def test_weights_that_are_no_numbers_are_refused_by_name() -> None:
    model = two_layers()
    with torch.no_grad():
        model[2].weight[0, 1] = torch.inf
    with pytest.raises(PruningError, match="2.weight: 1 of 4 weights are NaN or infinite; start from an undamaged"):
        l1_masks(model, UnstructuredSettings(sparsity=0.5))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"2.weight": torch.ones(2, 3, dtype=torch.bool)},
            r"2.weight has shape \(2, 3\), which is of shape \(2, 2\)",
        ),
        ({"7.weight": torch.ones(2, dtype=torch.bool)}, r"7.weight has shape \(2,\), which is not in the network"),
    ],
)
def test_masks_of_another_network_are_refused(masks: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PruningError, match=message) as caught:
        apply_masks_(two_layers(), masks)
    assert "\n" not in str(caught.value)
    assert "; make masks for this very network" in str(caught.value)
