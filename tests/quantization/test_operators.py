"""Operators that become several operations: in real numbers, in fake mode, in integers of torch and of numpy."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from quantised import made, noise, settled, worst_differences
from torch import Tensor, nn

from quantization.network import QuantizedNetwork
from quantization.storage.binary import program_bytes, program_from_bytes
from quantization.storage.reader import run
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import QuantizationError


class Between(nn.Module):
    """Something between two convolutions, the second with borders."""

    def __init__(self, body: Callable[..., Tensor], wide: int = 8, **modules: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.ModuleDict(modules)
        self.last = nn.Conv2d(wide, 4, 3, padding=1)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.inner, self.first(x)))


def shuffled(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """Channel shuffle as ShuffleNet has it."""
    batch, channels, height, width = x.size()
    return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width)


def squeezed(m: nn.ModuleDict, x: Tensor) -> Tensor:
    """Squeeze and excitation with linear layers."""
    gate = torch.sigmoid(m["gate"](x.mean((2, 3)))).view(-1, 8, 1, 1)
    return x * gate


def prelu() -> nn.PReLU:
    made = nn.PReLU(8)
    with torch.no_grad():
        made.weight.copy_(torch.linspace(-0.5, 1.5, 8))
    return made


OPERATORS: dict[str, tuple[Callable[..., Tensor], dict[str, nn.Module]]] = {
    "clamp_min": (lambda m, x: x.clamp_min(-0.1), {}),
    "clamp_max": (lambda m, x: torch.clamp_max(x, 0.2), {}),
    "clamp_min above zero": (lambda m, x: torch.clamp_min(x, min=0.1), {}),
    "difference": (lambda m, x: x - F.silu(x), {}),
    "difference of subtract": (lambda m, x: torch.subtract(x, F.max_pool2d(x, 3, 1, 1)), {}),
    "one minus": (lambda m, x: 1 - x, {}),
    "rsub": (lambda m, x: torch.rsub(x, 0.5), {}),
    "vector minus": (lambda m, x: torch.linspace(-1, 1, 8).view(1, 8, 1, 1) - x, {}),
    "prelu": (lambda m, x: m["act"](x), {"act": prelu()}),
    "prelu of one slope": (lambda m, x: m["act"](x), {"act": nn.PReLU()}),
    "prelu function": (lambda m, x: F.prelu(x, torch.tensor([0.3])), {}),
    "mean with borders": (lambda m, x: F.avg_pool2d(x, 3, 2, 1), {}),
    "mean with borders in one direction": (lambda m, x: m["pool"](x), {"pool": nn.AvgPool2d((1, 3), 1, (0, 1))}),
    "channel shuffle": (shuffled, {}),
    "gate of linear layers": (squeezed, {"gate": nn.Linear(8, 8)}),
    "concatenate": (lambda m, x: torch.concatenate((x[:, 4:], x[:, :4]), 1), {}),
    "function without a method": (lambda m, x: F.logsigmoid(F.softshrink(x)), {}),
    "border of zeros": (lambda m, x: m["pad"](x), {"pad": nn.ConstantPad2d((1, 0, 2, 1), 0.0)}),
    "concat along an axis": (lambda m, x: torch.cat((x[:, 4:], x[:, :4]), axis=1), {}),  # type: ignore[call-overload]
    "sides anew": (lambda m, x: x.flatten(2).view(-1, 8, 5, 33).transpose(2, 3), {}),
}


def assert_all_agree(network: QuantizedNetwork, images: Tensor) -> None:
    """Fake mode and integers to one quantum a layer; torch and numpy, the latter from a file, bit for bit."""
    assert {name: worst for name, worst in worst_differences(network, images) if worst > 1} == {}
    network.mode = "integer"
    (found,) = run(program_from_bytes(program_bytes(network.to_program(), layout="csr")), images.numpy())
    assert torch.equal(network(images), torch.from_numpy(found).float())


@pytest.mark.parametrize("bits", [3, 8, 12])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator_is_the_same_in_every_mode(name: str, bits: int) -> None:
    torch.manual_seed(0)
    body, modules = OPERATORS[name]
    model, images = Between(body, **modules), noise(3, 3, 11, 15)
    network = made(model, images, weight_bits=bits, activation_bits=bits, input_bits=max(bits, 8))
    expected = model(images)
    network.mode = "float"
    assert torch.allclose(network(images), expected, atol=1e-5)
    assert_all_agree(network, images)
    if bits > 3:
        assert (network(images) - expected).abs().max() < 5 / 2**bits * expected.abs().max()


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 2, 0), (2, 2, 0), (3, 2, 1), (2, 3, 0), (5, 4, 2), (3, 3, 1)]
)
@pytest.mark.parametrize("size", [7, 8, 9, 10, 11, 12])
def test_windows_over_the_end_are_those_of_torch(kernel: int, stride: int, padding: int, size: int) -> None:
    torch.manual_seed(0)
    model = Between(lambda m, x: F.max_pool2d(x, kernel, stride, padding, ceil_mode=True))
    images = noise(2, 3, size, 21 - size)
    network = made(model, images)
    network.mode = "float"
    assert torch.allclose(network(images), model(images), atol=1e-5)
    assert_all_agree(network, images)


def test_windows_over_the_end_hold_for_maps_of_other_sizes() -> None:
    model = Between(lambda m, x: F.pad(F.max_pool2d(x, 3, 2, ceil_mode=True), (0, 1, 2, 0))[..., 1:])
    network = made(model, noise(2, 3, 8, 9))
    network.mode = "float"
    for height, width in ((8, 9), (9, 8), (13, 14)):
        images = noise(1, 3, height, width)
        assert torch.allclose(network(images), model(images), atol=1e-5)


def torchvision_network(name: str, images: Tensor) -> nn.Module:
    """A network of torchvision for ten classes, with the batch norms' statistics of these images."""
    torch.manual_seed(0)
    settings = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return settled(getattr(import_torchvision().models, name)(num_classes=10, **settings), images)


def test_shufflenet_of_torchvision() -> None:
    images = noise(4, 3, 32, 32)
    model = torchvision_network("shufflenet_v2_x0_5", images)
    network = made(model, images, weight_bits=12, activation_bits=12, input_bits=12)
    assert_all_agree(network, images)
    assert F.cosine_similarity(network(images), model(images)).min() > 0.9


@pytest.mark.parametrize(
    "name",
    ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "mnasnet0_5", "regnet_y_400mf", "googlenet"],
)
def test_classifier_of_torchvision_is_the_same_in_floats_and_to_a_quantum_a_layer_in_integers(name: str) -> None:
    images = noise(4, 3, 32, 32)
    model = torchvision_network(name, images)
    network = made(model, images)
    network.mode = "float"
    expected = model(images)
    assert (network(images) - expected).abs().max() < 1e-2 * expected.abs().max()
    assert {name: worst for name, worst in worst_differences(network, images) if worst > 1} == {}


def test_transformer_like_classifier_is_refused_by_the_name_of_its_operator() -> None:
    model = import_torchvision().models.convnext_tiny(weights=None)
    with pytest.raises(QuantizationError, match=r"features.0.1.layer_norm: layer_norm is an operator, which has no"):
        made(model, noise(1, 3, 32, 32))
