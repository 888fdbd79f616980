"""Cut channels out of a network."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from models.copies import tensors_by_name, twin_that_shares, twin_with
from models.detector import Detector
from pruning.channels.graph import ChannelGraph, ChannelPart
from pruning.channels.ids import BoolArray, IntArray
from pruning.channels.trace import traced
from pruning.surgery.bottlenecks import drop_bottlenecks
from pruning.surgery.constants import carry_constants_
from pruning.surgery.plan import PruningPlan
from pruning.surgery.rebuild import pruned_spec, rebuilt
from pruning.surgery.slicing import kept_positions, kept_tensors, resize_, stays_by_id
from utils.errors import PruningError


def with_parts_renumbered(cut: nn.Module, model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> nn.Module:
    """Adapt slices, splits and chunks in a network's code to the cut channels.

    The code becomes a torch.fx graph, so its decisions by `self.training` outside of modules are fixed as in
    evaluation mode.

    Args:
        cut: Network with layers already cut.
        model: Network before the cut.
        graph: Channels of `model`.
        stays: Mask of the kept channels by id (n,).

    Returns:
        The adapted network; `cut` itself if no slice, split or chunk loses a channel.

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
    """Change the channel indices or sizes of one operator."""
    if node.target is operator.getitem:
        _renumber_slice_(node, part, stays)
        return
    # Chunks of a cut list may differ in size, so they become splits, which list each size.
    sizes = [len(kept_positions(ids, stays)) for ids in part.output_ids]
    node.target = torch.split if node.op == "call_function" else "split"
    node.args, node.kwargs = (node.all_input_nodes[0], sizes), {"dim": 1}


def _renumber_slice_(node: fx.Node, part: ChannelPart, stays: BoolArray) -> None:
    """Take the same channels from a cut list, by a slice if they are evenly spaced, else by their indices."""
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


def cut(model: nn.Module, graph: ChannelGraph, dropped: IntArray, *, carry: bool = True) -> nn.Module:
    """Build a network without some channels, on the same device, in the same mode and precision.

    It computes what `model` computes when the scales of these channels are zero: with `carry` their shifts are kept
    and carried on as constants (`pruning.surgery.constants`), else the shifts are zero as well.

    Args:
        model: Network; it is not changed, and the new one shares no memory with it.
        graph: Channels of the network.
        dropped: Ids of the channels to cut (n,).
        carry: Whether to carry constants on.

    Returns:
        For a `Detector`, a `Detector` with its pruned spec. Another network keeps its class, unless its code takes
        channels by index (slices, splits): then a `torch.fx.GraphModule` with adapted indices.

    Raises:
        PruningError: A channel must be kept, or a layer would lose all of its channels.
    """
    dropped = np.unique(dropped).astype(np.int64)
    check_cut(graph, dropped)
    stays = stays_by_id(graph, dropped)
    tensors = kept_tensors(model, graph, stays)
    if carry and len(dropped):
        carry_constants_(tensors, model, graph, stays)
    if isinstance(model, Detector):
        return rebuilt(pruned_spec(model, graph, stays), tensors, like=model)
    replacements = {id(tensor): tensors[name] for name, tensor in tensors_by_name(model).items()}
    pruned = twin_with(model, replacements)
    resize_(pruned, graph, stays)
    return with_parts_renumbered(pruned, model, graph, stays)


def apply_plan(
    model: nn.Module, plan: PruningPlan, *, carry: bool = True, image_chw: tuple[int, int, int] | None = None
) -> nn.Module:
    """Prune a network by a plan: remove bottlenecks first, then cut channels.

    Args:
        model: Network that the plan was made for; it is not changed.
        plan: Channels to keep, and bottlenecks to remove.
        carry: Whether to carry constants on, as in `cut`.
        image_chw: Image size, as in `ChannelGraph.of`.

    Raises:
        PruningError: The plan is for another network, or cannot be carried out.
    """
    plan.check_fits(model)
    if plan.bottlenecks:
        model = drop_bottlenecks(model, plan.bottlenecks)
    graph = ChannelGraph.of(model, image_chw=image_chw)
    return cut(model, graph, plan.dropped_ids(model, graph), carry=carry)


def check_cut(graph: ChannelGraph, dropped: IntArray) -> None:
    """Check that a cut is possible.

    Args:
        graph: Channels of the network.
        dropped: Ids of the channels to cut (n,).

    Raises:
        PruningError: A channel must be kept, no layer produces it, or a layer or a slice would be left with none.
    """
    for channel in np.setdiff1d(dropped, graph.prunable_ids)[:1].tolist():
        owners = graph.owners(channel)
        if not owners:
            raise PruningError(f"channel {channel} is produced by no layer; use ids of this network's graph")
        name, position = owners[0]
        raise PruningError(
            f"layer {name}: channel {position} must be kept ({graph.protected[channel]}); do not drop it in the plan"
        )
    stays = stays_by_id(graph, dropped)
    for layer in graph.layers.values():
        if not stays[layer.output_ids].any():
            raise PruningError(
                f"layer {layer.name}: the cut keeps 0 of {len(layer.output_ids)} channels; keep at least one"
            )
    for part in graph.parts:
        if not all(stays[ids].any() for ids in part.output_ids):
            raise PruningError(f"{part.node}: the cut keeps none of the channels it takes; keep at least one")
