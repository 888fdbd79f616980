"""A layer that is used several times has one weight: in the network, in training, and in the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quantised import made, noise, settled, worst_differences
from torch import Tensor, nn

from quantization.lowering.lower import lower
from quantization.network import QuantizedNetwork
from quantization.ranges.config import LayerBits
from quantization.rounding.compensation import compensate_
from quantization.sensitivity import only_layer, sensitivities
from quantization.storage.binary import program_bytes, program_from_bytes
from quantization.storage.reader import run
from quantization.storage.sizes import float_bytes
from quantization.storage.text import load_yaml, save_yaml
from utils.errors import CheckpointError


class Levels(nn.Module):
    """A tower over three levels with norms of each level, and a head over all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.tower = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.stem(x)
        levels = (y, F.max_pool2d(y, 2), F.max_pool2d(y, 4))
        return tuple(
            self.head(F.relu(norm(self.tower(level)))) for norm, level in zip(self.norms, levels, strict=True)
        )


class Recurrent(nn.Module):
    """A block, norm included, three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.head(x)


class Tied(nn.Module):
    """Two layers with one weight and a bias each, and two others that only begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight
        self.three, self.four = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.four.load_state_dict(self.three.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        return self.four(F.relu(self.three(F.relu(self.two(F.relu(self.one(x)))))))


def levels() -> Levels:
    """Norms that differ, one with negative factors."""
    torch.manual_seed(0)
    model = Levels()
    for number, norm in enumerate(model.norms):
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
        if number == 1:
            with torch.no_grad():
                norm.weight[::3] *= -1
    settled(model, noise(4, 3, 32, 32))
    return model


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return settled(Recurrent(), noise(4, 3, 32, 32))


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied().eval()


NETWORKS = {"levels": levels, "recurrent": recurrent, "tied": tied}


def as_list(result: object) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)  # type: ignore[call-overload]


def weights_of(network: QuantizedNetwork) -> set[int]:
    return {id(network.weights(name)[0]) for name in network.graph.weighted}


def test_nodes_tell_whose_weights_they_use() -> None:
    def found(model: nn.Module) -> dict[str, str]:
        graph = lower(model, image_shape=(3, 32, 32))
        return {name: graph.nodes[name].layer for name in graph.weighted}

    assert found(levels()) == {
        "stem": "",
        "tower": "",
        "head": "",
        "tower@2": "tower",
        "head@2": "head",
        "tower@3": "tower",
        "head@3": "head",
    }
    assert found(recurrent()) == {
        "stem": "",
        "block.0": "",
        "block.0@2": "block.0",
        "block.0@3": "block.0",
        "head": "",
    }
    assert found(tied()) == {"one": "", "two": "one", "three": "", "four": ""}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bits", [4, 8])
def test_all_modes_and_the_file_agree(name: str, bits: int) -> None:
    model, images = NETWORKS[name](), noise(4, 3, 32, 32, seed=1)
    network = made(model, images, weight_bits=bits, activation_bits=bits)
    with torch.no_grad():
        expected = as_list(model(images))
        network.mode = "float"
        for one, other in zip(as_list(network(images)), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)
        assert {name: worst for name, worst in worst_differences(network, images) if worst > 1} == {}
        network.mode = "integer"
        found = as_list(network(images))
    read = run(program_from_bytes(program_bytes(network.to_program(), layout="csr")), images.numpy())
    for integers, numbers, real in zip(found, read, expected, strict=True):
        assert torch.equal(integers, torch.from_numpy(numbers).float())
        if bits == 8:
            assert (integers - real).square().mean().sqrt() < 0.05 * real.std()


@pytest.mark.parametrize("name", NETWORKS)
def test_fake_and_integer_mode_are_equal_in_float64(name: str) -> None:
    images = noise(2, 3, 32, 32, seed=2).double()
    network = made(NETWORKS[name](), images.float(), weight_bits=5, activation_bits=5).double()
    with torch.no_grad():
        fake = as_list(network(images))
        network.mode = "integer"
        for one, other in zip(fake, as_list(network(images)), strict=True):
            assert torch.equal(one.float(), other)


def test_layer_has_one_set_of_parameters() -> None:
    network = made(recurrent(), noise(4, 3, 32, 32))
    assert sorted(name for name, _ in network.named_parameters()) == [
        f"layers.{layer}.{part}" for layer in ("block.0", "head", "stem") for part in ("bias", "weight")
    ]
    network = made(levels(), noise(4, 3, 32, 32))
    assert len(weights_of(network)) == 3
    # What norms of a level added is of that level.
    assert {name for name, _ in network.named_parameters() if "tower" in name} == {
        "layers.tower.weight",
        *(f"layers.tower{use}.{part}" for use in ("", "@2", "@3") for part in ("bias", "gain")),
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_training_with_learnt_scales_keeps_one_layer(name: str) -> None:
    images = noise(4, 3, 32, 32)
    network = made(NETWORKS[name](), images, weight_bits=4)
    network.learn_scales_()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    sum(output.square().mean() for output in as_list(network(images))).backward()  # type: ignore[union-attr]
    optimizer.step()
    assert all(not torch.equal(value, before[key]) for key, value in network.named_parameters() if "weight" in key)
    fake = as_list(network(images))
    network.settle_scales_()
    network.mode = "integer"
    with torch.no_grad():
        for one, other in zip(fake, as_list(network(images)), strict=True):
            assert (one - other).square().mean().sqrt() < 0.1 * one.std()
    arrays = {operation.name: operation.arrays for operation in network.to_program().operations}
    for use in network.graph.weighted:
        assert arrays[use]["weight"] is arrays[network.graph.layer_of(use)]["weight"]


def test_weight_is_in_the_file_once(tmp_path: Path) -> None:
    program = made(levels(), noise(4, 3, 32, 32)).to_program()
    save_yaml(program, tmp_path / "network.yaml")
    text = (tmp_path / "network.yaml").read_text()
    assert text.count("weight: {as: tower}") == 2
    assert text.count("weight: {as: head}") == 2
    read = load_yaml(tmp_path / "network.yaml")
    for one, other in zip(program.operations, read.operations, strict=True):
        for name, values in one.arrays.items():
            np.testing.assert_array_equal(values, other.arrays[name])
    assert float_bytes(program) == float_bytes(read) == 4 * (12 * 27 + 12 * 108 + 12 * 4 + 12 + 3 * 12 + 3 * 4)


@pytest.mark.parametrize(
    ("put", "words"),
    [
        ("{as: later}", "its weight is that of 'later', no earlier operation with weights"),
        ("{as: head@2}", "its weight is that of 'head@2', no earlier operation"),
        ("{as: input}", "its weight is that of 'input', no earlier operation"),
        ("{as: stem}", "weights for 3 x 1 channels"),
        ("{as: [tower]}", "as is list, expected"),
    ],
)
def test_reference_to_something_else_is_refused(put: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    save_yaml(made(levels(), noise(4, 3, 32, 32)).to_program(), path)
    path.write_text(path.read_text().replace("{as: tower}", put, 1))
    with pytest.raises(CheckpointError, match=words):
        load_yaml(path)


def test_norm_that_silences_a_channel_of_one_use_keeps_layers_apart() -> None:
    """Its integers would have no room for the bias of that channel."""
    model = levels()
    norm = model.norms[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        norm.weight[5] = 0
    images = noise(4, 3, 32, 32)
    network = made(model, images)
    assert network.graph.layers == ("stem", "tower", "head", "tower@2", "tower@3")
    with torch.no_grad():
        for norm in model.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            norm.weight[5] = 0
    network = made(model, images)
    assert network.graph.layers == ("stem", "tower", "head")
    network.mode = "integer"
    with torch.no_grad():
        for one, other in zip(network(images), model(images), strict=True):
            assert (one - other).square().mean().sqrt() < 0.05 * other.std()


@pytest.mark.parametrize("name", NETWORKS)
def test_compensation_leaves_one_layer(name: str) -> None:
    model, images = NETWORKS[name](), noise(4, 3, 32, 32)
    network = made(model, images)
    compensate_(network, [images])
    assert len(weights_of(network)) == len(network.graph.layers) == len(network.held_grids)
    network.mode = "integer"
    with torch.no_grad():
        for one, other in zip(as_list(network(images)), as_list(model(images)), strict=True):
            assert (one - other).square().mean().sqrt() < 0.05 * other.std()


@pytest.mark.parametrize("name", ["levels", "recurrent"])
def test_weight_is_rounded_for_all_uses(name: str) -> None:
    model, images = NETWORKS[name](), noise(8, 3, 32, 32)
    network = made(model, images, weight_bits=3, head_bits=3)

    def error() -> float:
        with torch.no_grad():
            pairs = zip(as_list(network(images)), as_list(model(images)), strict=True)
            return sum(float((one - other).norm() / other.norm()) for one, other in pairs)

    nearest = error()
    compensate_(network, [images])
    assert error() < 0.85 * nearest
    layer = next(layer for layer in network.graph.layers if network.graph.is_shared(layer))
    integers = network.weights(layer)[0].double() / network.held_grids[layer].scales.view(-1, 1, 1, 1)
    assert torch.allclose(integers, integers.round(), atol=1e-4)


def test_all_uses_have_the_same_bits() -> None:
    images = noise(4, 3, 32, 32)
    bits = made(levels(), images, layers={"tower": LayerBits(weights=5)}).bits.weights
    assert {bits[name] for name in ("tower", "tower@2", "tower@3")} == {5}
    bits = made(levels(), images, weight_bits=4, head_bits=8).bits.weights
    assert (bits["head"], bits["head@2"], bits["tower@2"]) == (8, 8, 4)


def test_sensitivity_is_measured_by_layer() -> None:
    network = made(levels(), noise(4, 3, 32, 32))
    rows = sensitivities(network, lambda _: 1.0, bits=[4])
    assert [row.layer for row in rows] == ["stem", "tower", "head"]
    plan = only_layer(network, "tower", bits=3, part="weights")
    assert {name for name, number in plan.weights.items() if number} == {"tower", "tower@2", "tower@3"}
