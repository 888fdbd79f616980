"""Cuts channels out of a network."""

from __future__ import annotations

import numpy as np
from torch import nn

from models.detector import Detector
from pruning.bottlenecks import drop_bottlenecks
from pruning.channel_ids import IntArray
from pruning.constants import carry_constants_
from pruning.graph import ChannelGraph
from pruning.parts import with_parts_renumbered
from pruning.plan import PruningPlan
from pruning.rebuild import pruned_spec, rebuilt
from pruning.slicing import kept_tensors, resize_, stays_by_id
from utils.errors import PruningError
from utils.twins import tensors_by_name, twin_with


def cut(model: nn.Module, graph: ChannelGraph, dropped: IntArray, *, carry: bool = True) -> nn.Module:
    """A network without some channels, on the same device, in the same mode and precision.

    It computes what `model` computes when the scales of these channels are zero: with `carry` their shifts stay and
    travel on as constants (`pruning.constants`), else the shifts are zero as well.

    Args:
        model: Not touched; the new network shares no memory with it.
        graph: Its channels.
        dropped: Ids to cut (n,).
        carry: Whether constants are carried on.

    Returns:
        A `Detector` with its pruned spec for a `Detector`. Another network keeps its class, unless its code takes
        channels by number (slices, splits): then it is a `torch.fx.GraphModule` with other numbers.

    Raises:
        PruningError: A channel must stay, or a layer would lose all of its channels.
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
    """What a plan makes of a network: bottlenecks removed first, then channels cut.

    Args:
        model: The network the plan was made for; not touched.
        plan: What to keep.
        carry: As for `cut`.
        image_chw: As for `ChannelGraph.of`.

    Raises:
        PruningError: The plan is for another network, or what it says cannot be done.
    """
    plan.check_fits(model)
    if plan.bottlenecks:
        if not isinstance(model, Detector):
            raise PruningError(
                f"the plan removes bottlenecks of a detector, but the network is a {type(model).__name__}; "
                "make a plan for it"
            )
        model = drop_bottlenecks(model, plan.bottlenecks)
    graph = ChannelGraph.of(model, image_chw=image_chw)
    return cut(model, graph, plan.dropped_ids(model, graph), carry=carry)


def check_cut(graph: ChannelGraph, dropped: IntArray) -> None:
    """Refuse a cut that is not possible.

    Args:
        graph: Channels of the network.
        dropped: Ids (n,).

    Raises:
        PruningError: A channel must stay, no layer makes it, or a layer or a slice would be left with none.
    """
    for channel in np.setdiff1d(dropped, graph.prunable_ids)[:1].tolist():
        owners = graph.owners(channel)
        if not owners:
            raise PruningError(f"channel {channel} is made by no layer; use ids of this network's graph")
        name, position = owners[0]
        raise PruningError(
            f"layer {name}: channel {position} must stay ({graph.protected[channel]}); leave it out of the plan"
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
