"""What each layer loses by rounding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from quantised import made, noise
from torch import Tensor, nn

from quantization.layer_errors import LayerError, layer_errors
from quantization.network import QuantizedNetwork, uncalibrated
from quantization.ranges.config import LayerBits
from quantization.rounding.compensation import compensate_


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1))


def measured(model: nn.Module, network: QuantizedNetwork, images: Tensor) -> dict[str, LayerError]:
    reals = uncalibrated(model, config=network.config, image_shape=network.image_shape)
    return {error.layer: error for error in layer_errors(network, reals, [images])}


@pytest.mark.parametrize("rounded", ["values", "inputs", "ends"])
def test_the_layer_of_fewest_bits_costs_most(rounded: str) -> None:
    images, model = noise(4, 3, 10, 10), layers()
    network = made(model, images, rounded=rounded, layers={"2": LayerBits(weights=2)})
    found = measured(model, network, images)
    assert list(found) == ["0", "2", "4"]
    assert found["2"].share > 0.9
    assert sum(error.share for error in found.values()) == pytest.approx(1)
    assert found["0"].error < found["2"].error
    assert (found["2"].weight_bits, found["0"].weight_bits, found["0"].value_bits) == (2, 8, 8)


def test_errors_are_those_of_the_network_as_it_is() -> None:
    images, model = noise(4, 3, 10, 10), layers()
    network = made(model, images, weight_bits=3, head_bits=3, rounded="inputs")
    before = measured(model, network, images)
    compensate_(network, [images])
    after = measured(model, network, images)
    with torch.no_grad():
        wanted = model(images)
        error = float((network(images) - wanted).norm() / wanted.norm())
    assert after["4"].error == pytest.approx(error, rel=1e-4)
    assert after["4"].error < before["4"].error
    # Alone, the same real weights are rounded, on grids that compensation has moved but little.
    assert after["0"].alone == pytest.approx(before["0"].alone, rel=0.5)


def test_ranges_tell_which_values_are_cut_off() -> None:
    images, model = noise(4, 3, 10, 10), layers()
    network = made(model, images, observer="percentile", percentile=90.0)
    found = measured(model, network, images)["2"]
    with torch.no_grad():
        read = model[:2](images)
    assert (found.low, found.high) == (pytest.approx(float(read.min())), pytest.approx(float(read.max())))
    assert found.kept_high < found.high
    assert found.kept_low >= found.low - 0.01


def test_layers_in_floating_point_have_no_row() -> None:
    images, model = noise(2, 3, 10, 10), layers()
    network = made(model, images, rounded="inputs")
    network.set_bits_(replace(network.bits, weights={**network.bits.weights, "2": None}))
    assert list(measured(model, network, images)) == ["0", "4"]
