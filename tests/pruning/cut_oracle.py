"""The oracle of surgery: a network with all that makes some channels zero equals the network without them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from mask_oracle import lively, outputs, silence_, some_ids
from torch import Tensor, nn

from models.detector import Detector
from pruning.channel_ids import IntArray
from pruning.graph import ChannelGraph
from pruning.surgery import cut


def cuttable_ids(graph: ChannelGraph, *, seed: int, share: float = 0.4) -> IntArray:
    """Ids that may be dropped together: every layer and every slice keeps a channel."""
    dropped = set(some_ids(graph, seed=seed, share=share).tolist())
    lists = [layer.output_ids for layer in graph.layers.values()]
    lists += [ids for part in graph.parts for ids in part.output_ids]
    for ids in lists:
        if dropped.issuperset(ids.tolist()):
            dropped.discard(int(ids[0]))
    return np.array(sorted(dropped), dtype=np.int64)


def image_for(model: nn.Module, graph: ChannelGraph) -> Tensor:
    """One image of the size a network was traced on, in its precision."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, *graph.image_chw, generator=generator).to(next(model.parameters()).dtype)


def largest_difference(actual: nn.Module, expected: nn.Module, images: Tensor) -> float:
    """Of all outputs, relative to the largest expected one; both must be finite."""
    wanted, given = outputs(expected, images), outputs(actual, images)
    assert torch.isfinite(wanted).all()
    return float((given - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))


def cut_difference(model: nn.Module, graph: ChannelGraph, dropped: IntArray, *, may_be_silent: bool = False) -> float:
    """By how much the cut network differs from the masked one.

    Raises:
        AssertionError: Masking changes nothing, so that the test would prove nothing; unless `may_be_silent`.
    """
    images = image_for(model, graph)
    masked = copy.deepcopy(model)
    silence_(masked, graph, dropped)
    assert may_be_silent or largest_difference(masked, model, images) > 1e-6
    return largest_difference(cut(model, graph, dropped, carry=False), masked, images)


def check_cut_of(model: nn.Module, *, image_chw: tuple[int, int, int] | None = None) -> tuple[Any, IntArray]:
    """Compare cut and masked network in both precisions.

    Returns:
        The cut network in float64, and the ids dropped.
    """
    torch.manual_seed(0)
    exact = lively(model)
    graph = ChannelGraph.of(exact, image_chw=image_chw)
    dropped = cuttable_ids(graph, seed=1)
    assert cut_difference(exact, graph, dropped) < 1e-10
    assert cut_difference(copy.deepcopy(exact).float(), graph, dropped) < 1e-4
    pruned = cut(exact, graph, dropped)
    assert isinstance(pruned, Detector) == isinstance(model, Detector)
    return pruned, dropped
