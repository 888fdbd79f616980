"""Name layers by patterns of their paths: which channels may be pruned, and how many of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import IntArray
from pruning.channels.shortcuts import candidate_ids
from pruning.choices import Shortcuts
from utils.errors import PruningError

# Share of a channel that a product of shares may be off.
_TINY = 1e-9


def free_ids(model: nn.Module, graph: ChannelGraph, *, shortcuts: Shortcuts, protect: Sequence[str]) -> IntArray:
    """Return the channels that may be pruned, sorted (n,), without those of protected layers.

    Raises:
        PruningError: A pattern matches no layer.
    """
    return np.setdiff1d(candidate_ids(model, graph, shortcuts), protected_ids(graph, protect))


def protected_ids(graph: ChannelGraph, patterns: Sequence[str]) -> IntArray:
    """Return the channels produced by layers whose paths match a pattern, sorted (n,).

    Raises:
        PruningError: A pattern matches no layer.
    """
    found = [np.empty(0, dtype=np.int64)]
    for pattern in patterns:
        found += [layer.output_ids for layer in _matching(graph, pattern, flag="--protect")]
    return np.unique(np.concatenate(found))


def least_widths(graph: ChannelGraph, limits: Mapping[str, float]) -> dict[str, int]:
    """Return the fewest outputs to keep of each layer that a pattern matches; of several patterns the last counts.

    Raises:
        PruningError: A pattern matches no layer.
    """
    least = {}
    for pattern, share in limits.items():
        for layer in _matching(graph, pattern, flag="--limit"):
            least[layer.name] = math.ceil((1 - share) * len(layer.output_ids) - _TINY)
    return least


def least_by_group(graph: ChannelGraph, widths: Mapping[str, int]) -> dict[int, int]:
    """Return the fewest channels to keep of those that layers share, by the smallest of their ids.

    Args:
        graph: Channels of the network, which may have been cut since `widths` were counted.
        widths: Fewest outputs of layers, by path.
    """
    least = {}
    for group in graph.groups:
        wanted = [
            # A layer may produce several groups of channels, or the same channel several times.
            math.ceil(widths[name] * len(group.ids) / len(graph.layers[name].output_ids) - _TINY)
            for name in group.producers
            if name in widths
        ]
        if wanted:
            least[int(group.ids[0])] = min(max(wanted), len(group.ids))
    return least


def _matching(graph: ChannelGraph, pattern: str, *, flag: str) -> list[LayerChannels]:
    """Return the layers that produce channels and whose paths match a pattern.

    Raises:
        PruningError: There are none.
    """
    layers = [layer for layer in graph.layers.values() if not layer.is_norm]
    found = [layer for layer in layers if fnmatchcase(layer.name, pattern)]
    if not found:
        first = ", ".join(layer.name for layer in layers[:3])
        raise PruningError(f"{flag} {pattern} matches no layer; the layers include {first}; use * for any part")
    return found
