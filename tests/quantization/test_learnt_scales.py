"""Scales that train with the weights: their gradients, their state, and what becomes of them."""

from __future__ import annotations

import math

import pytest
import torch
from quantised import made, noise, settled, worst_differences
from torch import Tensor, nn

from quantization.network import QuantizedNetwork, uncalibrated
from quantization.program.program import Affine
from quantization.ranges.affine import Grid, fake_quantise, fake_weight
from quantization.ranges.config import QuantConfig
from quantization.ranges.learnt import LearntScales
from quantization.rounding.compensation import compensate_


class Small(nn.Module):
    """Kinds of clamps, a shortcut, and a result that several layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.SiLU())
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.ReLU6())
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.pool(torch.cat((x, x + self.inner(x)), 1)))


def small(images: Tensor, **settings: object) -> QuantizedNetwork:
    torch.manual_seed(0)
    return made(settled(Small(), images), images, **settings)


@pytest.mark.parametrize(
    ("value", "slope"),
    [
        (0.6, 1 - 1.2),  # inside: how far rounding moves it, in steps
        (-0.2, 0.4),
        (9.0, 3),  # clamped: the integer it is clamped to
        (-9.0, -2),
    ],
)
def test_gradient_of_a_scale_is_that_of_learned_step_size_quantisation(value: float, slope: float) -> None:
    affine = Affine(scale=1.0, zero_point=2, low=0, high=5)
    scale = torch.tensor(0.5, requires_grad=True)
    rounded = fake_quantise(torch.tensor([value]), affine, scale=scale)
    rounded.sum().backward()
    assert scale.grad is not None
    assert scale.grad.item() == pytest.approx(slope, abs=1e-6)


def test_each_channel_of_a_weight_has_the_gradient_of_its_own_scale() -> None:
    scales = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    grid = Grid(scales=scales, zero_points=torch.zeros(2, dtype=torch.float64), low=-3, high=3)
    weight = torch.tensor([[0.6, 9.0], [3.0, -1.0]], requires_grad=True)
    fake_weight(weight, grid).sum().backward()
    assert scales.grad is not None
    assert scales.grad.tolist() == pytest.approx([1 - 1.2 + 3, 2 - 1.5 + 0 + 0.5])
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("rounded", ["values", "inputs", "ends"])
@pytest.mark.parametrize("bits", [3, 8])
def test_a_training_begins_where_calibration_ended(bits: int, rounded: str) -> None:
    images = noise(4, 3, 8, 8)
    network = small(images, weight_bits=bits, activation_bits=bits, rounded=rounded, observer="mse")
    compensate_(network, [images])
    with torch.no_grad():
        before = network(images)
        network.learn_scales_()
        during = network(images)
        network.settle_scales_()
        after = network(images)
    step = float((before.max() - before.min()) / 2**bits)
    # A logarithm in float32 may move a value across the edge between two integers.
    assert ((during - before).abs() > step / 10).float().mean() < 0.01
    torch.testing.assert_close(after, during)


@pytest.mark.parametrize("signed", [True, False])
def test_zero_points_and_limits_are_those_of_the_calibration(signed: bool) -> None:
    images = noise(2, 3, 8, 8)
    network = small(images, activation_symmetric=signed, activation_signed=signed)
    before = {name: network.affine_of(name) for name in network.graph.scaled}
    network.learn_scales_()
    network.settle_scales_()
    for name, affine in before.items():
        now = network.affine_of(name)
        assert affine is not None
        assert now is not None
        assert (now.zero_point, now.low, now.high) == (affine.zero_point, affine.low, affine.high), name


def test_trained_scales_give_the_same_integers_as_their_simulation() -> None:
    images = noise(4, 3, 8, 8)
    network = small(images, weight_bits=5, activation_bits=5)
    network.learn_scales_()
    assert network.scales is not None
    with torch.no_grad():  # a ReLU6 then ends at another integer
        network.scales.values.add_(torch.linspace(-0.4, 0.3, len(network.scales.values)))
        network.scales.weights.add_(0.1)
    network.settle_scales_()
    assert max(difference for _, difference in worst_differences(network, images)) <= 1


def test_state_has_all_that_another_process_needs() -> None:
    images = noise(4, 3, 8, 8)
    network = small(images, weight_bits=4, activation_bits=4)
    compensate_(network, [images])
    network.learn_scales_()
    torch.manual_seed(0)
    fresh = settled(Small(), noise(4, 3, 8, 8, seed=1))  # other ranges, the same layers
    other = uncalibrated(fresh, config=network.config, image_shape=(3, 8, 8))
    other.mode = "fake"
    other.learn_scales_()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other(images), network(images))
    network.settle_scales_()
    other.settle_scales_()
    network.mode = other.mode = "integer"
    assert torch.equal(other(images), network(images))


@pytest.mark.parametrize("what", ["scales", "weights"])
def test_training_mends_what_was_spoilt(what: str) -> None:
    images = noise(8, 3, 8, 8)
    network = small(images, weight_bits=8, activation_bits=8)
    network.mode = "float"
    with torch.no_grad():
        wanted = network(images)
    network.mode = "fake"
    network.learn_scales_()
    assert network.scales is not None
    trained = network.scales if what == "scales" else network.layers
    with torch.no_grad():
        if what == "scales":  # ranges end too early; those of images do not train
            network.scales.values[1:].sub_(0.7)
            network.scales.weights.sub_(0.7)
        else:
            for name in network.graph.weighted:
                weight, _ = network.weights(name)
                weight.add_(noise(*weight.shape) - 0.5)

    def error() -> Tensor:
        return (network(images) - wanted).square().mean()

    with torch.no_grad():
        before = error()
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.02)
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 100)
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
    with torch.no_grad():
        assert error() < before / 4


def test_images_keep_their_scale_and_fixed_scales_get_no_gradient() -> None:
    images = noise(2, 3, 8, 8)
    network = small(images)
    network.learn_scales_()
    network(images).sum().backward()
    scales = network.scales
    assert scales is not None
    assert scales.values.grad is not None
    assert scales.values.grad[0] == 0
    assert scales.values.grad[1:].count_nonzero() == len(scales.values) - 1
    network.learn_scales_(learns=False)
    network(images).sum().backward()
    assert network.scales is not None
    assert network.scales.values.grad is None
    assert not network.scales.weights.requires_grad


def test_gradients_of_scales_are_divided_by_the_root_of_what_shares_them() -> None:
    scales = LearntScales({"a": Affine(scale=1.0, zero_point=0, low=-7, high=7)}, {}, units={})
    x = torch.full((2, 50), 0.25)
    scales.rounded("a", x).sum().backward()
    assert scales.values.grad is not None
    # Each of 100 values moves by -.25 steps; a sample has 50 of them, and the largest integer is 7.
    assert scales.values.grad.item() == pytest.approx(-0.25 * 100 / math.sqrt(50 * 7), rel=1e-5)


def test_an_unrounded_layer_has_no_scale() -> None:
    images = noise(2, 3, 8, 8)
    config = QuantConfig(rounded="inputs")
    network = small(images, rounded="inputs")
    network.set_bits_(type(network.bits)(weights={**network.bits.weights, "last": None}, values=network.bits.values))
    network.learn_scales_()
    assert network.config.rounded == config.rounded
    assert network.grid(network.graph.nodes["last"]) is None
    assert network.grid(network.graph.nodes["stem.0"]) is not None
