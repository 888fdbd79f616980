"""A cut that is wrong is refused, whatever made it wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels import operators, shape_rules
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.errors import PruningError


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Give networks the same weights in any order of tests; a rare one is dead behind its last activation."""
    torch.manual_seed(0)


class Joined(nn.Module):
    """Two maps joined, read by one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.norm, self.read, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.relu(self.norm(torch.cat((self.one(x), self.other(x)), 1)))
        y: Tensor = self.last(torch.relu(self.read(joined)))
        return y


def with_layer(graph: ChannelGraph, name: str, **changes: object) -> ChannelGraph:
    layers = {**graph.layers, name: replace(graph.layers[name], **changes)}  # type: ignore[arg-type]
    return replace(graph, layers=layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_right_cut_passes_in_every_precision_and_leaves_the_random_state(dtype: torch.dtype) -> None:
    model = Joined().to(dtype)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    state, before = torch.get_rng_state(), {name: each.clone() for name, each in model.state_dict().items()}
    pruned = cut(model, graph, graph.prunable_ids[::3])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert {each.dtype for each in pruned.parameters()} == {dtype}
    assert model.read.forward.__func__ is nn.Conv2d.forward  # type: ignore[attr-defined]


def test_order_of_joined_maps_that_is_wrong_is_found() -> None:
    model = Joined()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    swapped = with_layer(graph, "read", input_ids=np.roll(graph.layers["read"].input_ids, 4))
    with pytest.raises(PruningError, match=r"Joined cannot be cut: layer read computes something else after the cut"):
        cut(model, swapped, graph.layers["one"].output_ids[:2])


def test_norm_of_other_channels_is_found() -> None:
    model = Joined()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    rolled = np.roll(graph.layers["norm"].output_ids, 1)
    with pytest.raises(PruningError, match=r"layer norm computes something else"):
        cut(model, with_layer(graph, "norm", input_ids=rolled, output_ids=rolled), graph.layers["one"].output_ids[:1])


def test_rule_that_lets_channels_mix_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators.FUNCTION_RULES, "softmax", shape_rules.pass_on)  # type: ignore[arg-type]

    class Mixing(Joined):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(torch.softmax(self.read(torch.cat((self.one(x), self.other(x)), 1)), 1))
            return y

    model = Mixing()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    with pytest.raises(PruningError, match=r"layer last computes something else"):
        cut(model, graph, graph.layers["read"].output_ids[:2])


def test_cut_network_that_does_not_run_is_named_with_its_layer() -> None:
    model = Joined()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    short = with_layer(graph, "last", input_ids=graph.layers["last"].input_ids[[0, 2, 2, 3, 4, 5]])
    with pytest.raises(PruningError, match=r"layer last fails \("):
        cut(model, short, graph.layers["read"].output_ids[:2])


def test_network_without_numbers_is_cut_without_a_proof() -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec.from_yaml("yolov5n"))
    graph = ChannelGraph.of(model)
    for carry in (False, True):
        assert next(cut(model, graph, graph.prunable_ids[:1], carry=carry).parameters()).is_meta


@dataclass
class Result:
    """Outputs of a network under a name."""

    scores: Tensor


class Named(Joined):
    """Returns a dataclass."""

    def forward(self, x: Tensor) -> Result:  # type: ignore[override]
        return Result(super().forward(x))


class Silent(Joined):
    """Returns nothing that could be compared."""

    def forward(self, x: Tensor) -> str:  # type: ignore[override]
        super().forward(x)
        return "done"


def test_outputs_of_a_dataclass_are_compared_and_no_outputs_are_refused() -> None:
    model = Named()
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    assert cut(model, graph, graph.layers["read"].output_ids[:2]).read.out_channels == 4
    swapped = with_layer(graph, "read", input_ids=np.roll(graph.layers["read"].input_ids, 4))
    with pytest.raises(PruningError, match="layer read computes something else"):
        cut(model, swapped, graph.layers["one"].output_ids[:2])
    silent = Silent()
    graph = ChannelGraph.of(silent, image_chw=(3, 8, 8))
    with pytest.raises(PruningError, match="the network returns no tensors"):
        cut(silent, graph, graph.layers["read"].output_ids[:2])
