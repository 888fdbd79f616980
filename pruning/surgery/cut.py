"""Cut channels out of a network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from models.copies import tensors_by_name, twin_with
from models.detector import Detector
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import BoolArray, IntArray
from pruning.surgery.bottlenecks import drop_bottlenecks
from pruning.surgery.constants import carry_constants_
from pruning.surgery.plan import PruningPlan
from pruning.surgery.proof import check_equal
from pruning.surgery.rebuild import pruned_spec, rebuilt
from pruning.surgery.renumbering import with_parts_renumbered
from pruning.surgery.slicing import kept_tensors, resize_, stays_by_id
from utils.errors import PruningError


def cut(model: nn.Module, graph: ChannelGraph, dropped: IntArray, *, carry: bool = True) -> nn.Module:
    """Build a network without some channels, on the same device, in the same mode and precision.

    It computes what `model` computes when the layers that read these channels read zeros in their place; with `carry`
    they read what the channels are when their scales are zero, as constants (`pruning.surgery.constants`). This is
    proved before the network is returned (`pruning.surgery.proof`).

    Args:
        model: Network; it is not changed, and the new one shares no memory with it.
        graph: Channels of the network.
        dropped: Ids of the channels to cut (n,).
        carry: Whether to carry constants on.

    Returns:
        For a `Detector`, a `Detector` with its pruned spec. Another network keeps its class, unless its code takes
        channels by index (slices, splits): then a `torch.fx.GraphModule` with adapted indices.

    Raises:
        PruningError: A channel must be kept, a layer would lose all of its channels, or the proof fails.
    """
    dropped = np.unique(dropped).astype(np.int64)
    check_cut(graph, dropped)
    stays = stays_by_id(graph, dropped)
    tensors = kept_tensors(model, graph, stays)
    if carry and len(dropped):
        carry_constants_(tensors, model, graph, stays)
    pruned = _assembled(model, graph, stays, tensors)
    if len(dropped):
        check_equal(model, pruned, graph, stays)
    return pruned


def _assembled(model: nn.Module, graph: ChannelGraph, stays: BoolArray, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build the network of these tensors, which are cut already."""
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
