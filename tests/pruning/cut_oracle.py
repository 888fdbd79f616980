"""The oracle of surgery: a network with all that makes some channels zero equals the network without them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from mask_oracle import lively, outputs, silence_, some_ids
from torch import Tensor, nn

from models.detector import Detector
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.surgery.cut import cut


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


def difference(actual: Tensor, expected: Tensor) -> float:
    """Largest of two vectors of outputs, relative to the largest expected number; all must be finite."""
    assert torch.isfinite(expected).all()
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def masked_outputs(model: nn.Module, graph: ChannelGraph, dropped: IntArray, images: Tensor) -> Tensor:
    """What a network computes with all that makes these channels zero."""
    masked = copy.deepcopy(model)
    silence_(masked, graph, dropped)
    return outputs(masked, images)


def check_cut_of(model: nn.Module, *, image_chw: tuple[int, int, int] | None = None) -> Any:
    """Compare the masked network with the cut one, cut in float64 and in float32.

    Returns:
        The cut network in float64.
    """
    torch.manual_seed(0)
    model = lively(model)
    graph = ChannelGraph.of(model, image_chw=image_chw)
    dropped = cuttable_ids(graph, seed=1)
    images = image_for(model, graph)
    expected = masked_outputs(model, graph, dropped, images)
    # Else the test would prove nothing.
    assert difference(outputs(model, images), expected) > 1e-6
    pruned = cut(model, graph, dropped, carry=False)
    assert difference(outputs(pruned, images), expected) < 1e-10
    rough = cut(model.float(), graph, dropped, carry=False)
    assert difference(outputs(rough, images.float()), expected) < 1e-4
    assert isinstance(pruned, Detector) == isinstance(model, Detector)
    return pruned
