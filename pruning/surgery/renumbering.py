"""Change the channel numbers that the code of a network holds: indices, sizes of parts and of shapes, groups."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import fx, nn
from torch import split as torch_split

from models.copies import twin_that_shares
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import BoolArray
from pruning.channels.recording import PartKind, PartRecord
from pruning.channels.trace import traced
from pruning.surgery.slicing import kept_positions

# Position of the groups among the arguments of a convolution as a function.
_GROUPS = 6


def with_parts_renumbered(cut: nn.Module, model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> nn.Module:
    """Adapt the channel numbers in a network's code to the cut channels.

    The code becomes a torch.fx graph, so its decisions by `self.training` outside of modules are fixed as in
    evaluation mode.

    Args:
        cut: Network with layers already cut.
        model: Network before the cut.
        graph: Channels of `model`.
        stays: Mask of the kept channels by id (n,).

    Returns:
        The adapted network; `cut` itself if no number changes.
    """
    touched = [part for part in graph.parts if not stays[part.input_ids].all()]
    if not touched:
        return cut
    twin = twin_that_shares(model)
    operators = traced(twin)
    nodes = {node.name: node for node in operators.nodes}
    for part in touched:
        _RENUMBER[part.record.kind](nodes[part.node], part.record, stays)
    operators.lint()
    _take_constants_(cut, twin, operators)
    return fx.GraphModule(cut, operators, class_name=type(model).__name__)


def _take_constants_(cut: nn.Module, twin: nn.Module, operators: fx.Graph) -> None:
    """Give a network the tensors that its code makes out of numbers, which the tracer has stored in `twin`."""
    for node in operators.nodes:
        name = str(node.target)
        if node.op == "get_attr" and "." not in name and not hasattr(cut, name):
            setattr(cut, name, getattr(twin, name))


def _renumber_parts_(node: fx.Node, part: PartRecord, stays: BoolArray) -> None:
    """List the size of each part: chunks of a cut list may differ in size, so they become splits."""
    sizes = [len(kept_positions(ids, stays)) for ids in part.output_ids]
    node.target = torch_split if node.op == "call_function" else "split"
    node.args, node.kwargs = (node.all_input_nodes[0], sizes), {"dim": part.axis}


def _renumber_index_(node: fx.Node, part: PartRecord, stays: BoolArray) -> None:
    """Take the same channels from a cut list, by a slice if they are evenly spaced, else by their indices."""
    assert part.positions is not None
    source: Any
    index: Any
    source, index = node.args
    entries = list(index) if isinstance(index, tuple) else [index]
    # Where each kept input channel is in the cut list.
    places = np.cumsum(stays[part.input_ids]) - 1
    taken = places[part.positions[stays[part.input_ids[part.positions]]]]
    step = int(taken[1] - taken[0]) if len(taken) > 1 else 1
    if step > 0 and np.array_equal(taken, np.arange(taken[0], taken[-1] + 1, step)):
        entries[part.entry] = slice(int(taken[0]), int(taken[-1]) + 1, step)
    else:
        with node.graph.inserting_before(node):
            chosen = (*[slice(None)] * part.axis, taken.tolist())
            source = node.graph.call_function(operator.getitem, (source, chosen))
        entries[part.entry] = slice(None)
    node.args = (source, tuple(entries))


def _renumber_size_(node: fx.Node, part: PartRecord, stays: BoolArray) -> None:
    """Give the size of the channels of a new shape, or that of positions, which were computed from channels."""
    count = len(kept_positions(part.output_ids[0], stays)) if part.kind == "size" else part.entry
    source, *sizes = node.args
    is_list = len(sizes) == 1 and isinstance(sizes[0], list | tuple)
    written: list[Any] = list(sizes[0]) if is_list else sizes  # type: ignore[arg-type]
    written[part.axis] = count
    node.args = (source, written) if is_list else (source, *written)


def _renumber_groups_(node: fx.Node, part: PartRecord, stays: BoolArray) -> None:
    """Give the number of groups of a convolution, whose inputs are all of one group or none."""
    inputs = part.input_ids
    groups: Any = node.args[_GROUPS] if len(node.args) > _GROUPS else node.kwargs["groups"]
    left = int(groups) * len(kept_positions(inputs, stays)) // len(inputs)
    if len(node.args) > _GROUPS:
        node.args = (*node.args[:_GROUPS], left)
    else:
        node.kwargs = {**node.kwargs, "groups": left}


_RENUMBER: Mapping[PartKind, Callable[[fx.Node, PartRecord, BoolArray], None]] = {
    "split": _renumber_parts_,
    "take": _renumber_index_,
    "size": _renumber_size_,
    "constant": _renumber_size_,
    "groups": _renumber_groups_,
}
