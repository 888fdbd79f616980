"""One network in three modes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised import made, noise, settled, worst_differences
from tiny import TINY_CFG
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.classifiers import LeNet5
from models.detector import build_model
from models.spec import ModelSpec
from quantization.execution.executor import Executor
from quantization.ranges.affine import quantise
from quantization.ranges.config import LayerBits, QuantConfig
from quantization.storage.binary import program_bytes, program_from_bytes
from quantization.storage.reader import run
from tasks.detection import QuantizedHeads
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import ConfigError, DataError, QuantizationError


class FloatCounter(TorchDispatchMode):
    """Counts the tensors of floating point that operations take or give."""

    def __init__(self) -> None:
        super().__init__()
        self.floats = 0
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls += 1
        tensors = [item for item in torch.utils._pytree.tree_leaves((args, result)) if isinstance(item, Tensor)]
        self.floats += sum(tensor.is_floating_point() for tensor in tensors)
        return result


def one_weight(weight: float, bias: float) -> nn.Sequential:
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.bias.fill_(bias)
    return nn.Sequential(layer)


def everything() -> nn.Module:
    """A network with every kind of operation."""

    class Everything(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
            self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Hardswish())
            self.wider = nn.Conv2d(8, 16, 3, 1, 2, dilation=2, groups=8)
            self.grouped = nn.Conv2d(16, 8, 1, groups=2)
            self.gate = nn.Conv2d(8, 8, 1)
            self.last = nn.Linear(16 * 4 * 2, 5)
            # Ranges without zero, before borders of zeros.
            self.above = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.Hardtanh(0.1, 1.0))
            self.below = nn.Conv2d(8, 8, 3, 1, 1)
            self.beside = nn.Conv2d(8, 8, 3, 1, 1)
            nn.init.constant_(self.above[0].bias, 0.5)
            nn.init.constant_(self.below.bias, -1.0)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.depth(x)
            x = x + self.beside(torch.clamp(self.below(self.above(x)), -2.0, -0.2))
            x = x * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
            x = torch.cat((F.max_pool2d(x, 3, 1, 1), F.relu(self.grouped(F.relu6(self.wider(x))))), 1)
            x = F.avg_pool2d(x, 2)
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            return self.last(F.relu(x[:, :, ::2, 2::3]).permute(0, 2, 3, 1).flatten(1))

    torch.manual_seed(0)
    return settled(Everything(), noise(8, 3, 16, 16))


def test_integers_of_one_weight_are_those_by_hand() -> None:
    # Input 0 to 1 in 8 bits, weight 0.5 = 127 / 254, output 0.25 to 0.75 in 8 + 4 bits: 4095 steps up to .75.
    network = made(one_weight(0.5, 0.25), torch.tensor([[[[0.0, 1.0]]]]))
    layer = network.to_program().operations[1]
    assert layer.arrays["weight"].tolist() == [[[[127]]]]
    assert layer.arrays["bias"].tolist() == [16193]  # 0.25 * 255 * 254 = 16192.5, halves round up
    assert layer.output.scale == pytest.approx(0.75 / 4095)
    real = layer.arrays["multiplier"][0] / 2 ** layer.arrays["shift"][0]
    assert real == pytest.approx(1 / 255 * 0.5 / 127 / (0.75 / 4095), rel=1e-8)
    integers = Executor(network.to_program())(torch.tensor([[[[0, 255, 51]]]]))
    assert integers[0].flatten().tolist() == [1365, 4095, 1911]  # thirds of .75, and .35 / .75


def test_float_mode_is_the_network() -> None:
    model, images = everything(), noise(4, 3, 16, 16, seed=1)
    network = made(model, images)
    network.mode = "float"
    assert torch.allclose(network(images), model(images), atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 17))
def test_fake_and_integer_mode_agree_bit_for_bit_in_float64(bits: int) -> None:
    images = noise(4, 3, 16, 16, seed=2).double()
    network = made(everything(), images.float(), weight_bits=bits, activation_bits=bits).double()
    fake = network(images)
    network.mode = "integer"
    assert torch.equal(network(images), fake.float())


@pytest.mark.parametrize("bits", [2, 5, 8, 12, 16])
@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_layer_agrees_to_one_quantum(bits: int, is_symmetric: bool, per_channel: bool) -> None:
    images = noise(4, 3, 16, 16, seed=3)
    network = made(
        everything(),
        images,
        weight_bits=bits,
        activation_bits=bits,
        weight_symmetric=is_symmetric,
        activation_symmetric=is_symmetric,
        per_channel=per_channel,
    )
    assert {name: worst for name, worst in worst_differences(network, images) if worst > 1} == {}


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Small networks of random layers."""
    layers: list[nn.Module] = []
    channels = 2
    for _ in range(draw(st.integers(1, 4))):
        groups = draw(st.sampled_from([1, channels]))
        out = channels * draw(st.integers(1, 2))
        kernel = draw(st.sampled_from([1, 3]))
        layers.append(nn.Conv2d(channels, out, kernel, draw(st.integers(1, 2)), kernel // 2, groups=groups))
        channels = out
        choices = [
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.ReLU(),
            nn.LeakyReLU(0.1),
            nn.MaxPool2d(3, 1, 1),
            nn.GELU(),
        ]
        layers += draw(st.lists(st.sampled_from(choices), max_size=3))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("limits", [(0.1, 1.0), (0.01, 2.0), (-2.0, -0.2), (0.3, float("inf"))])
@pytest.mark.parametrize("bits", [4, 8, 10])
def test_ranges_without_zero_agree_and_are_stored(limits: tuple[float, float], bits: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Hardtanh(*limits), nn.Conv2d(8, 4, 3, padding=1))
    images = noise(4, 3, 16, 16)
    network = made(model, images, activation_bits=bits, weight_bits=bits)
    assert max(worst for _, worst in worst_differences(network, images)) <= 1
    program = network.to_program()
    network.mode = "integer"
    (found,) = run(program_from_bytes(program_bytes(program, layout="dense")), images.numpy())
    assert torch.equal(network(images), torch.from_numpy(found).float())
    expected = model(images)
    assert (network(images) - expected).abs().max() < 4 / 2**bits * expected.abs().max()


@settings(max_examples=40)
@given(model=networks(), bits=st.integers(2, 16), kind=st.sampled_from(["minmax", "mse"]), symmetric=st.booleans())
def test_modes_of_random_networks_agree(model: nn.Sequential, bits: int, kind: str, symmetric: bool) -> None:
    images = noise(2, 2, 9, 9).double()
    network = made(
        model, images.float(), weight_bits=bits, activation_bits=bits, observer=kind, activation_symmetric=symmetric
    ).double()
    assert max(worst for _, worst in worst_differences(network, images)) <= 1


def test_no_float_between_input_and_output() -> None:
    images = noise(2, 3, 16, 16)
    for bits in (4, 8, 16):
        program = made(everything(), images, weight_bits=bits, activation_bits=bits).to_program()
        executor, integers = Executor(program), quantise(images, program.operations[0].output)
        with FloatCounter() as counter:
            executor(integers)
        assert counter.calls > 50
        assert counter.floats == 0


def test_more_bits_are_nearer_to_the_network() -> None:
    model, images = everything(), noise(4, 3, 16, 16, seed=4)
    network = made(model, images)
    errors = []
    for bits in (2, 4, 8, 12):
        network.set_config_(QuantConfig(weight_bits=bits, activation_bits=bits, input_bits=max(bits, 8)))
        errors.append(float((network(images) - model(images)).detach().abs().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * errors[0]


def test_gradients_reach_every_weight_and_learning_helps() -> None:
    images, wanted = noise(16, 3, 16, 16, seed=5), noise(16, 5, seed=6)
    network = made(everything(), images, weight_bits=3, activation_bits=4).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = F.mse_loss(network(images), wanted)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    network.eval().mode = "integer"
    # Integers follow the weights as they are now.
    assert float(F.mse_loss(network(images), wanted)) < losses[0]


def test_other_weights_put_in_place_of_the_old_give_other_integers() -> None:
    network, images = made(LeNet5(), noise(4, 1, 28, 28)), noise(2, 1, 28, 28, seed=3)
    network.mode = "integer"
    before = network(images)
    zeros = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    network.load_state_dict(zeros, assign=True)
    assert before.abs().max() > 0
    assert network(images).abs().max() == 0


def test_other_numbers_under_the_same_weights_give_other_integers() -> None:
    network, images = made(LeNet5(), noise(4, 1, 28, 28)), noise(2, 1, 28, 28, seed=3)
    network.mode = "integer"
    network(images)
    for parameter in network.parameters():
        parameter.data = torch.zeros_like(parameter)
    assert network(images).abs().max() == 0


def test_weights_keep_their_paths() -> None:
    names = dict(made(LeNet5(), noise(2, 1, 28, 28)).named_parameters())
    assert names["layers.features.0.weight"].shape == (6, 1, 5, 5)


def test_zero_weights_are_zero_integers() -> None:
    model = LeNet5()
    with torch.no_grad():
        model.classifier[0].weight[:, ::2] = 0
    for symmetric in (True, False):
        network = made(model, noise(2, 1, 28, 28), weight_symmetric=symmetric)
        operation = next(item for item in network.to_program().operations if item.name == "classifier.0")
        centred = operation.arrays["weight"] - operation.arrays["weight_zero_point"][:, None]
        assert (centred[:, ::2] == 0).all()


def test_channel_of_zeros_gives_its_bias() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 1e-12]).view(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([3.0, -2.0]))
    network = made(model, noise(1, 1, 4, 4))
    network.mode = "integer"
    assert network(noise(1, 1, 4, 4))[0, :, 0, 0].tolist() == pytest.approx([3.0, -2.0], abs=0.01)


def test_bits_of_single_layers() -> None:
    layers = {
        "features.*": LayerBits(weights=4),
        "features.3": LayerBits(activations=5),
        "input": LayerBits(activations=6),
    }
    network = made(LeNet5(), noise(2, 1, 28, 28), layers=layers)
    assert network.bits.weights["features.3"] == 4
    assert network.bits.weights["classifier.0"] == 8
    assert (network.bits.values["features.3"], network.bits.values["input"]) == (5, 6)
    assert network.bits.values["classifier.4"] == 12  # an output
    with pytest.raises(ConfigError, match="'nothing' matches none; known: input, features.0"):
        network.set_config_(QuantConfig(layers={"nothing": LayerBits(weights=4)}))


@pytest.mark.parametrize("kind", ["minmax", "percentile", "kl", "mse"])
def test_every_observer_gives_a_working_network(kind: str) -> None:
    model, images = everything(), noise(8, 3, 16, 16, seed=7)
    network = made(model, images, observer=kind)
    network.mode = "integer"
    expected = model(images)
    assert (network(images) - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_a_copy_is_independent() -> None:
    network = made(LeNet5(), noise(2, 1, 28, 28))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.weights("features.0")[0].zero_()
    assert network.weights("features.0")[0].abs().sum() > 0


@pytest.mark.parametrize("bits", [0, 1, 17, 8.0, True])
def test_bits_outside_the_range_are_an_error(bits: Any) -> None:
    with pytest.raises(ConfigError, match="expected a whole number from 2 to 16"):
        QuantConfig(weight_bits=bits)
    with pytest.raises(ConfigError, match="expected a whole number from 2 to 16"):
        LayerBits(activations=bits)


@pytest.mark.parametrize(
    "setting", [{"observer": "best"}, {"weight_range": "kl"}, {"percentile": 50}, {"table_bits": 15}]
)
def test_unknown_settings_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        QuantConfig(**setting)


def test_calibration_without_images_or_with_nan_is_an_error() -> None:
    network = made(LeNet5(), noise(2, 1, 28, 28))
    with pytest.raises(DataError, match="no calibration images"):
        network.calibrate([])
    with pytest.raises(DataError, match="input: calibration images lead to NaN"):
        network.calibrate([torch.full((1, 1, 28, 28), float("nan"))])


def test_images_of_another_size_are_refused_where_a_mean_fixes_it() -> None:
    network = made(everything(), noise(2, 3, 16, 16))
    network.mode = "integer"
    with pytest.raises(DataError, match=r"images of shape \(3, 20, 16\): .* correct for images of \(3, 16, 16\)"):
        network(noise(2, 3, 20, 16))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(1, 1, 32, 32), r"images of shape \(1, 32, 32\): operation 'classifier.0'"),
        (noise(0, 1, 28, 28), "expected .* with at least one image"),
        (noise(1, 28, 28), "expected .* with at least one image"),
        (torch.full((1, 1, 28, 28), float("nan")), "images contain NaN or infinity"),
    ],
)
def test_images_that_integers_cannot_be_made_of_are_refused(images: Tensor, message: str) -> None:
    network = made(LeNet5(), noise(2, 1, 28, 28))
    network.mode = "integer"
    with pytest.raises(DataError, match=message):
        network(images)


def test_program_needs_bits_for_everything() -> None:
    network = made(LeNet5(), noise(2, 1, 28, 28))
    network.set_bits_(type(network.bits)(weights=network.bits.weights, values={**network.bits.values, "input": None}))
    with pytest.raises(QuantizationError, match="input: is not quantised"):
        network.to_program()


def test_tiny_detector_gives_the_heads_of_the_float_one() -> None:
    torch.manual_seed(0)
    images = noise(4, 3, 64, 64)
    detector = settled(build_model(ModelSpec.from_yaml(TINY_CFG)), images)
    network = made(detector, images)
    assert "model.0.conv" in network.graph.nodes
    network.mode = "integer"
    for head, expected in zip(QuantizedHeads(network, detector)(images), detector(images), strict=True):
        assert head.shape == expected.shape
        assert (head - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision(name: str) -> None:
    import_torchvision()
    from torchvision import models

    torch.manual_seed(0)
    images = noise(8, 3, 32, 32)
    model = settled(getattr(models, name)(num_classes=10), images)
    network = made(model, images, weight_bits=12, activation_bits=12, input_bits=12)
    assert max(worst for _, worst in worst_differences(network, images)) <= 1
    network.mode = "integer"
    assert F.cosine_similarity(network(images), model(images)).min() > 0.9


def test_heads_and_what_they_read_have_more_bits_unless_told_otherwise() -> None:
    images = noise(2, 3, 8, 8)
    layers = [nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.SiLU(), nn.Conv2d(4, 2, 1)]
    few = {"weight_bits": 3, "activation_bits": 3, "table_bits": 0}
    usual = made(nn.Sequential(*layers), images, **few)
    assert usual.bits.weights == {"0": 3, "2": 3, "4": 8}
    assert (usual.bits.values["1"], usual.bits.values["3"]) == (3, 8)
    all_few = made(nn.Sequential(*layers), images, **few, head_bits=2)
    assert set(all_few.bits.weights.values()) == {3}
    named = made(nn.Sequential(*layers), images, **few, layers={"4": LayerBits(weights=5)})
    assert named.bits.weights["4"] == 5


def test_weights_of_few_bits_lose_their_largest_and_others_do_not() -> None:
    images, layer = noise(2, 1, 4, 4), nn.Conv2d(1, 1, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.1, 0.1, 9).view(1, 1, 3, 3))
        layer.weight[0, 0, 2, 2] = 0.19
    for bits, is_cut in ((3, True), (8, False)):
        grids = {}
        for weight_range in ("auto", "minmax", "mse"):
            network = made(nn.Sequential(layer), images, weight_bits=bits, head_bits=2, weight_range=weight_range)
            grids[weight_range] = network.grid(network.graph.nodes["0"])
        auto, minmax, mse = (float(grids[name].scales[0]) for name in ("auto", "minmax", "mse"))  # type: ignore[union-attr]
        assert auto == (mse if is_cut else minmax)
        assert not is_cut or mse < minmax
