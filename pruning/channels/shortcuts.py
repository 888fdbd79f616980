"""Find the channels that belong to shortcuts, which the "skip" mode does not prune."""

from __future__ import annotations

from collections import Counter

import numpy as np
from torch import nn

from models.blocks.blocks import Bottleneck
from models.blocks.mobilenet import SqueezeExcite
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import CONV, LINEAR
from pruning.choices import Shortcuts


def shortcut_bottleneck_names(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the bottlenecks that add their input to their output, in order."""
    return tuple(name for name, module in model.named_modules() if isinstance(module, Bottleneck) and module.add)


def shortcut_ids(model: nn.Module, graph: ChannelGraph) -> IntArray:
    """Return the channels that an addition joins, and those inside the shortcut bottlenecks, sorted (n,)."""
    # A gate produces the channels it scales a second time, which joins no branches.
    gates = {f"{name}.fc2" for name, module in model.named_modules() if isinstance(module, SqueezeExcite)}
    makers = Counter(
        channel
        for layer in graph.layers.values()
        if layer.kind in (CONV, LINEAR) and layer.name not in gates
        for channel in np.unique(layer.output_ids).tolist()
    )
    tied = [channel for channel, count in makers.items() if count > 1]
    inside = [graph.layers[f"{name}.cv1.conv"].output_ids for name in shortcut_bottleneck_names(model)]
    return np.unique(np.concatenate([np.array(tied, dtype=np.int64), *inside]))


def candidate_ids(model: nn.Module, graph: ChannelGraph, shortcuts: Shortcuts) -> IntArray:
    """Return the channels that may be pruned, sorted (n,); "skip" leaves out the channels of shortcuts."""
    if shortcuts == "tied":
        return graph.prunable_ids
    return np.setdiff1d(graph.prunable_ids, shortcut_ids(model, graph))
