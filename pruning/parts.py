"""Slices, splits and chunks along channels, with the numbers that hold after a cut."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from pruning.channel_ids import BoolArray
from pruning.graph import ChannelGraph, ChannelPart
from pruning.slicing import kept_positions
from pruning.trace import traced
from utils.errors import PruningError
from utils.twins import twin_that_shares


def with_parts_renumbered(cut: nn.Module, model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> nn.Module:
    """A network whose code takes the right channels after a cut.

    What its code decides by `self.training` outside of modules is fixed as in evaluation mode: the code becomes a
    torch.fx graph, as traced.

    Args:
        cut: The network with layers already cut.
        model: The network before.
        graph: Channels of `model`.
        stays: By id of a channel, whether it is kept (n,).

    Returns:
        `cut` itself where no slice, split or chunk loses a channel.

    Raises:
        PruningError: A slice is written in a way that cannot be renumbered.
    """
    touched = [part for part in graph.parts if not stays[part.input_ids].all()]
    if not touched:
        return cut
    operators = traced(twin_that_shares(model))
    nodes = {node.name: node for node in operators.nodes}
    for part in touched:
        _renumber_(nodes[part.node], part, stays)
    operators.lint()
    return fx.GraphModule(cut, operators, class_name=type(model).__name__)


def _renumber_(node: fx.Node, part: ChannelPart, stays: BoolArray) -> None:
    """Change the numbers of one operator."""
    if node.target is operator.getitem:
        _renumber_slice_(node, part, stays)
        return
    # Chunks of a cut list need not be equal, so they become splits, which name each size.
    sizes = [len(kept_positions(ids, stays)) for ids in part.output_ids]
    node.target = torch.split if node.op == "call_function" else "split"
    node.args, node.kwargs = (node.all_input_nodes[0], sizes), {"dim": 1}


def _renumber_slice_(node: fx.Node, part: ChannelPart, stays: BoolArray) -> None:
    """Take the same channels from a cut list: by a slice where they lie evenly, else by their numbers."""
    source: Any
    index: Any
    source, index = node.args
    if Ellipsis in index:
        raise PruningError(
            f"{node.name} takes channels by an index with '...', which cannot be renumbered; write its dimensions out"
        )
    wanted = np.zeros(len(part.input_ids), dtype=bool)
    wanted[index[1]] = True
    positions = np.flatnonzero(wanted[kept_positions(part.input_ids, stays)])
    first, last = int(positions[0]), int(positions[-1])
    step = int(positions[1] - first) if len(positions) > 1 else 1
    if np.array_equal(positions, np.arange(first, last + 1, step)):
        node.args = (source, (index[0], slice(first, last + 1, step), *index[2:]))
        return
    with node.graph.inserting_before(node):
        chosen = node.graph.call_function(operator.getitem, (source, (slice(None), positions.tolist())))
    node.args = (chosen, (index[0], slice(None), *index[2:]))
