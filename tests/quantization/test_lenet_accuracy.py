"""LeNet5 on MNIST: accuracy in integers, compensated rounding, sensitivity and mixed precision."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.taylor_oracle import classification_task
from models.classifiers import LeNet5
from quantization.network import QuantizedNetwork, quantize
from quantization.ranges.config import QuantConfig
from quantization.rounding.compensation import compensate_
from quantization.sensitivity import Sensitivity, mixed_precision, sensitivities, weight_bytes
from utils.datasets.classes.pictures import read_picture_file
from utils.errors import ConfigError

Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits(shared: Path) -> tuple[Digits, Digits]:
    """Images (N, 1, 28, 28) in [0, 1] and labels: to train with and to measure on."""
    with np.load(shared / "data/classification/mnist.npz") as data:
        arrays = {name: data[name] for name in data.files}
    train, test = (
        (
            torch.from_numpy(arrays[f"x_{part}"][:count]).view(-1, 1, 28, 28).float() / 255,
            torch.from_numpy(arrays[f"y_{part}"][:count]).long(),
        )
        for part, count in (("train", 6000), ("test", 1000))
    )
    return train, test


@pytest.fixture(scope="module")
def lenet(shared: Path) -> nn.Module:
    torch.manual_seed(0)
    model = LeNet5()
    pictures = read_picture_file(shared / "data/classification/mnist.npz").train.first(6000)
    classification_task(pictures).train_(model, updates=150, lr=0.05)
    return model.eval()


@pytest.fixture
def network(lenet: nn.Module, digits: tuple[Digits, Digits]) -> QuantizedNetwork:
    return quantize(lenet, digits[0][0][:500].split(100), config=QuantConfig(), image_shape=(1, 28, 28))


def accuracy(model: nn.Module, digits: Digits) -> float:
    images, labels = digits
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_eight_bit_integers_are_as_good_as_floats(
    network: QuantizedNetwork, lenet: nn.Module, digits: tuple[Digits, Digits]
) -> None:
    network.mode = "integer"
    dense = accuracy(lenet, digits[1])
    assert dense > 0.9
    assert accuracy(network, digits[1]) > dense - 0.005


def test_compensated_rounding_beats_the_nearest(
    network: QuantizedNetwork, lenet: nn.Module, digits: tuple[Digits, Digits]
) -> None:
    network.set_config_(QuantConfig(weight_bits=3))
    nearest = copy.deepcopy(network)
    compensate_(network, [digits[0][0][:200]])
    images = digits[1][0]
    with torch.no_grad():
        errors = [float((model(images) - lenet(images)).square().mean()) for model in (network, nearest)]
    assert errors[0] < 0.5 * errors[1]
    network.mode = "integer"
    assert accuracy(network, digits[1]) > accuracy(lenet, digits[1]) - 0.03


def test_compensation_leaves_zeros(network: QuantizedNetwork, digits: tuple[Digits, Digits]) -> None:
    weight, _ = network.weights("classifier.0")
    with torch.no_grad():
        weight[:, 1::3] = 0
    before = weight.detach().clone()
    compensate_(network, [digits[0][0][:100]])
    assert (weight[before == 0] == 0).all()
    assert not torch.equal(weight, before)
    # Rounded weights stay what they are when they are rounded again.
    rounded, _ = network.rounded_weights(network.graph.nodes["classifier.0"])
    assert torch.equal(rounded, weight)


def test_table_has_a_row_per_layer_and_leaves_the_network_alone(
    network: QuantizedNetwork, digits: tuple[Digits, Digits]
) -> None:
    bits = network.bits
    table = sensitivities(network, lambda model: accuracy(model, digits[1]), bits=[2, 8])
    assert [(row.layer, row.bits) for row in table[:3]] == [("features.0", 2), ("features.0", 8), ("features.3", 2)]
    assert len(table) == 10
    assert network.mode == "fake"
    assert network.bits == bits
    assert max(row.loss for row in table if row.bits == 8) < 0.01
    assert max(row.loss for row in table if row.bits == 2) > 0.005


def test_table_leaves_scales_that_are_held(network: QuantizedNetwork) -> None:
    first = network.graph.weighted[0]
    grid = network.grid(network.graph.nodes[first])
    assert grid is not None
    network.hold_grid_(first, replace(grid, scales=2 * grid.scales))
    before = network.to_program()
    sensitivities(network, lambda model: 0.0, bits=[4])
    assert torch.equal(network.held_grids[first].scales, 2 * grid.scales)
    weights = [program.operations[1].arrays["weight"] for program in (before, network.to_program())]
    np.testing.assert_array_equal(*weights)


def test_only_the_named_layer_is_rounded(network: QuantizedNetwork, digits: tuple[Digits, Digits]) -> None:
    seen = []

    def metric(model: nn.Module) -> float:
        assert isinstance(model, QuantizedNetwork)
        seen.append({name for name, bits in model.bits.weights.items() if bits} if model.mode == "fake" else set())
        return 0.0

    sensitivities(network, metric, bits=[4], part="weights")
    assert seen[0] == set()
    assert seen[1:] == [{name} for name in network.graph.weighted]


def test_mixed_precision_spends_its_bytes_where_they_matter(network: QuantizedNetwork) -> None:
    rows = {"features.0": 0.5, "features.3": 0.4, "classifier.0": 0.01, "classifier.2": 0.02, "classifier.4": 0.3}
    table = [
        Sensitivity(layer=layer, bits=bits, metric=0.0, loss=loss if bits == 4 else 0.0)
        for layer, loss in rows.items()
        for bits in (4, 8)
    ]
    whole = weight_bytes(network, dict.fromkeys(rows, 8))
    config = mixed_precision(network, table, budget_bytes=0.62 * whole)
    assert {name: bits.weights for name, bits in config.layers.items()} == {
        "features.0": 8,
        "features.3": 8,
        "classifier.0": 4,
        "classifier.2": 8,
        "classifier.4": 8,
    }
    network.set_config_(config)
    assert network.bits.weights["classifier.0"] == 4


def test_budget_that_cannot_be_met_is_an_error(network: QuantizedNetwork) -> None:
    table = [Sensitivity(layer=name, bits=4, metric=0, loss=0) for name in network.graph.weighted]
    with pytest.raises(ConfigError, match="raise it, or measure fewer bits"):
        mixed_precision(network, table, budget_bytes=100)
    with pytest.raises(ConfigError, match="bits to try"):
        sensitivities(network, lambda model: 0.0, bits=[1])
