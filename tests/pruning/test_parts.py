"""Slices, splits and chunks whose numbers follow a cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cut_oracle import difference, image_for, masked_outputs
from mask_oracle import lively, outputs
from torch import Tensor, fx, nn

from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.errors import PruningError

Operator = Callable[[Tensor], Tensor]


class Parts(nn.Module):
    """`first` makes six channels, an operator takes them apart, `last` reads what comes out."""

    def __init__(self, operator: Operator, *, read: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.operator = operator
        self.last = nn.Conv2d(read, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.norm(self.first(x))))


def turned(parts: Any, *, count: int) -> Tensor:
    """The parts joined in reverse order."""
    return torch.cat([parts[number] for number in reversed(range(count))], 1)


OPERATORS: dict[str, tuple[Operator, int]] = {
    "split in equal parts": (lambda x: turned(torch.split(x, 2, 1), count=3), 6),
    "split in sizes": (lambda x: turned(x.split([1, 3, 2], dim=1), count=3), 6),
    "split with names": (lambda x: turned(torch.split(tensor=x, split_size_or_sections=3, dim=1), count=2), 6),
    "chunk": (lambda x: turned(torch.chunk(x, 2, dim=1), count=2), 6),
    "chunk as method": (lambda x: turned(x.chunk(3, 1), count=3), 6),
    "slice from the front": (lambda x: x[:, :4], 4),
    "slice to the back": (lambda x: x[:, 2:, ::2], 4),
    "every other": (lambda x: x[:, 1::2], 3),
    "every other and positions": (lambda x: x[:, ::2, 1:, 0].unsqueeze(-1), 3),
    "part of a part": (lambda x: x[:, 1:][:, :-1], 4),
    "list": (lambda x: x[:, [4, 1, 0, 2]], 4),
    "index with dots": (lambda x: x[..., :4, :, :], 4),
    "half by the count": (lambda x: torch.cat((x[:, x.shape[1] // 2 :], x[:, : x.shape[1] // 2] * 2), 1), 6),
    "split by the count": (lambda x: turned(x.split(x.size(1) // 2, dim=1), count=2), 6),
    "new shape with numbers": (lambda x: x.reshape(-1, 6, 4, 16).view(x.shape[0], 6, 8, 8), 6),
}


@pytest.mark.parametrize("dropped", [[2], [3], [2, 3], [0, 4]])
@pytest.mark.parametrize("name", OPERATORS)
def test_parts_of_a_cut_list_equal_those_of_the_masked_one(name: str, dropped: list[int]) -> None:
    torch.manual_seed(0)
    operator, read = OPERATORS[name]
    model = lively(Parts(operator, read=read))
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    ids = graph.layers["first"].output_ids[dropped]
    if any(set(part.tolist()) <= set(ids.tolist()) for parts in graph.parts for part in parts.output_ids):
        with pytest.raises(PruningError, match="the cut keeps none of the channels it takes"):
            cut(model, graph, ids)
        return
    pruned = cut(model, graph, ids, carry=False)
    images = image_for(model, graph)
    assert isinstance(pruned, fx.GraphModule)
    assert difference(outputs(pruned, images), masked_outputs(model, graph, ids, images)) < 1e-12


def test_cut_parts_can_be_cut_again() -> None:
    torch.manual_seed(0)
    model = lively(Parts(lambda x: turned(x.chunk(2, 1), count=2), read=6))
    for _ in range(2):
        graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
        ids = graph.layers["first"].output_ids[1:2]
        images = image_for(model, graph)
        expected = masked_outputs(model, graph, ids, images)
        model = cut(model, graph, ids, carry=False)
        assert difference(outputs(model, images), expected) < 1e-12


def test_network_whose_parts_lose_nothing_keeps_its_class() -> None:
    model = nn.Sequential(Parts(lambda x: x[:, :4], read=4), nn.Conv2d(2, 3, 1))
    graph = ChannelGraph.of(model)
    assert type(cut(model, graph, graph.layers["0.last"].output_ids[:1])) is nn.Sequential
