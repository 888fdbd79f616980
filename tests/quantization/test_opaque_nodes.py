"""Modules without an integer form in networks for runtimes that compute them in floating point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quantised import made, noise
from tiny import ROOT
from torch import Tensor, nn

from models.detector import build_model
from models.spec import ModelSpec
from quantization.lowering.lower import lower
from quantization.rounding.compensation import compensate_
from utils.errors import QuantizationError

SHAPE = (3, 32, 32)


class Norms(nn.Module):
    """Two convolutions with a norm between them that takes statistics of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.norm(self.first(x)))
        return result


class Branch(nn.Module):
    """Code that torch.fx cannot trace, and that reads the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.conv(x).view(x.shape[0], 4, -1)
        if float(rows.sum()) > 1e9:
            rows = -rows
        return rows.softmax(2).view_as(x), x


class WithBranch(nn.Module):
    """The branch between two convolutions; both of its results are read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(3, 4, 3), Branch(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.inner(self.first(x))
        result: Tensor = self.last(torch.cat([one, other], 1))
        return result


def opaque_names(model: nn.Module) -> list[str]:
    graph = lower(model, image_shape=SHAPE, allow_opaque=True)
    return [node.name for node in graph.nodes.values() if node.kind == "opaque"]


def test_a_module_without_integer_form_becomes_opaque_only_where_that_is_allowed() -> None:
    model = Norms().eval()
    assert opaque_names(model) == ["norm"]
    with pytest.raises(QuantizationError, match="norm: GroupNorm is an operator, which has no integer form"):
        lower(model, image_shape=SHAPE)


def test_the_smallest_module_that_cannot_be_traced_becomes_opaque_and_takes_any_number_of_images() -> None:
    model = WithBranch().eval()
    assert opaque_names(model) == ["inner", "inner.1"]
    network = made(model, noise(4, *SHAPE), rounded="inputs")
    network.mode = "float"
    for count in (1, 3):
        images = noise(count, *SHAPE, seed=1)
        with torch.no_grad():
            assert torch.allclose(network(images), model(images), atol=1e-6)


def test_code_outside_of_all_modules_is_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.softmax(1)

    with pytest.raises(QuantizationError, match="softmax"):
        lower(Root(), image_shape=SHAPE, allow_opaque=True)


def test_transformer_detector_has_its_blocks_opaque_and_all_else_in_eight_bits() -> None:
    model = build_model(ModelSpec.from_yaml(Path(ROOT, "models/yolov5s-transformer.yaml"), num_classes=2)).eval()
    graph = lower(model, image_shape=(3, 64, 64), allow_opaque=True)
    opaque = {node.name for node in graph.nodes.values() if node.kind == "opaque"}
    assert opaque
    assert all(".m" in name for name in opaque)
    assert len(graph.weighted) > 40


@pytest.mark.parametrize("kind", [Norms, WithBranch])
def test_compensation_works_through_opaque_nodes(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    model = kind()
    images = noise(6, *SHAPE)
    network = made(model, images, rounded="inputs", weight_bits=4, head_bits=4, weight_range="minmax")

    def error() -> float:
        with torch.no_grad():
            wanted = model(images)
            return float((network(images) - wanted).norm() / wanted.norm())

    before = error()
    compensate_(network, [images])
    assert error() < 0.7 * before
