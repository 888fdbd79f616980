"""What fake mode rounds for runtimes that compute in floating point between their layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from quantised import made, noise
from torch import Tensor, nn

from quantization.network import QuantizedNetwork
from quantization.ranges.affine import fake_quantise
from quantization.ranges.bits import BitPlan
from quantization.rounding.compensation import compensate_
from utils.errors import ConfigError


class Residual(nn.Module):
    """Two convolutions; what the second reads is added to its result."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.act, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.one(x))
        result: Tensor = x + self.two(x)
        return result


IMAGES = noise(4, 3, 12, 12)


def quantised(**settings: object) -> QuantizedNetwork:
    return made(Residual(), IMAGES, **settings)


def rounded_to(network: QuantizedNetwork, name: str, x: Tensor) -> Tensor:
    affine = network.affine_of(name)
    assert affine is not None
    return fake_quantise(x, affine)


@pytest.mark.parametrize("rounded", ["inputs", "ends"])
def test_rounded_are_what_layers_read_and_with_ends_what_they_return_and_nothing_else(rounded: str) -> None:
    network = quantised(rounded=rounded)
    one, two = (network.graph.nodes[name] for name in ("one", "two"))

    def layer(node_name: str, x: Tensor, source: str) -> Tensor:
        weight, bias = network.rounded_weights(network.graph.nodes[node_name])
        found = nn.functional.conv2d(rounded_to(network, source, x), weight, bias, padding=1)
        return rounded_to(network, node_name, found) if rounded == "ends" else found

    with torch.no_grad():
        x = nn.functional.silu(layer("one", IMAGES, "input"))
        expected = x + layer("two", x, two.inputs[0])  # the sum reads the value that is not rounded
        assert torch.equal(network(IMAGES), expected)
    # The bias keeps its precision.
    assert torch.equal(network.rounded_weights(one)[1], network.weights("one")[1])


def test_layers_without_bits_read_and_return_real_numbers() -> None:
    network = quantised(rounded="ends")
    network.set_bits_(replace(network.bits, weights=dict.fromkeys(network.bits.weights)))
    with torch.no_grad():
        assert torch.allclose(network(IMAGES), Residual()(IMAGES), atol=1e-6)


def test_signed_integers_are_signed_where_no_value_is_negative() -> None:
    images = noise(2, 3, 12, 12)
    affines = [
        made(Residual(), images, rounded="inputs", activation_symmetric=True, activation_signed=signed).affine_of(
            "input"
        )
        for signed in (False, True)
    ]
    assert [(affine.low, affine.high, affine.zero_point) for affine in affines if affine] == [
        (0, 255, 0),
        (-127, 127, 0),
    ]


@pytest.mark.parametrize("rounded", ["inputs", "ends"])
def test_compensation_repairs_quantised_layers_and_those_that_stay_in_real_numbers(rounded: str) -> None:
    network = quantised(rounded=rounded, weight_bits=3, activation_bits=5)
    weights = {**network.bits.weights, "two": None}
    network.set_bits_(BitPlan(weights=weights, values=network.bits.values))
    with torch.no_grad():
        wanted = Residual()(IMAGES)
        before = float((network(IMAGES) - wanted).norm())
        real = network.weights("two")[0].clone()
        compensate_(network, [IMAGES])
        assert float((network(IMAGES) - wanted).norm()) < 0.7 * before
    assert not torch.equal(network.weights("two")[0], real)
    assert set(network.held_grids) == {"one"}


def test_unknown_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="rounded is 'some', expected one of values, inputs, ends"):
        quantised(rounded="some")
