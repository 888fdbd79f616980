"""What this project can prune of a network of the table, and whether its cut is exact."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from torch import nn

from benchmarks.any_network_cases import Case, freeze_norms_
from benchmarks.any_network_numbers import (
    EXACT,
    deafen_,
    further_outputs,
    largest_difference,
    mask_,
    outputs_at,
    random_drop,
    settle_,
)
from models.complexity import count_parameters
from pruning.channels.graph import ChannelGraph
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut

RATIO = 0.3
NOTHING = "nothing to prune"
CONSTANTS_ASIDE = "exact, constants aside"
# Parameters above which a network is traced and planned only.
_LARGEST = 150e6
# A mask that changes less than this would prove nothing.
_LEAST_EFFECT = 1e-6
_MOST_REASONS = 5
_MAKERS = (nn.modules.conv._ConvNd, nn.Linear)


def measure_ours(case: Case, result: dict[str, Any]) -> None:
    """Trace, cut and compare a network; what is known so far is in `result` whatever happens then.

    Raises:
        UserError: The network is refused.
    """
    model = case.build()
    result["parameters"] = count_parameters(model)
    if result["parameters"] > _LARGEST:
        _plan(model.eval(), case, result)
        return
    settle_(model, case.image_chw)
    if case.is_frozen:
        freeze_norms_(model)
    result["stage"] = "trace"
    graph = ChannelGraph.of(model, image_chw=case.image_chw)
    result.update(_shares(model, graph))
    _cut(model, graph, case, result)


def _plan(model: nn.Module, case: Case, result: dict[str, Any]) -> None:
    """Trace and plan only."""
    result.update(stage="trace", is_planned_only=True)
    graph = ChannelGraph.of(model, image_chw=case.image_chw)
    result.update(_shares(model, graph))
    if not len(graph.prunable_ids):
        result["verdict"] = NOTHING
        return
    result["stage"] = "plan"
    settings = PlanSettings(
        percent=RATIO, criterion="kernel_l1", shortcuts="tied", rounding=Rounding(), trace_chw=case.image_chw
    )
    planner = Planner.of(model, settings)
    allocation = planner.allocate()
    planner.plan(allocation)
    result.update(verdict="planned", dropped=len(allocation.dropped))


def _shares(model: nn.Module, graph: ChannelGraph) -> dict[str, Any]:
    """Count the channels that layers make, and those that may be pruned.

    A channel that several layers make together counts once; channels of layers that the graph does not list count as
    made and not prunable. `positions` counts the output channels of all layers, however joined.
    """
    listed = {name: layer for name, layer in graph.layers.items() if not layer.is_norm}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, _MAKERS)}
    hidden = {
        name: module.out_features if isinstance(module, nn.Linear) else module.out_channels
        for name, module in layers.items()
        if name not in listed
    }
    made = np.unique(np.concatenate([np.empty(0, np.int64), *(layer.output_ids for layer in listed.values())]))
    positions = [graph.is_prunable(layer.output_ids) for layer in listed.values()]
    ids = set(made.tolist())
    reasons = Counter(reason for channel, reason in graph.protected.items() if channel in ids)
    all_positions = sum(map(len, positions)) + sum(hidden.values())
    return {
        "made": len(made) + sum(hidden.values()),
        "prunable": len(graph.prunable_ids),
        "share": len(graph.prunable_ids) / max(1, len(made) + sum(hidden.values())),
        "positions_share": float(sum(mask.sum() for mask in positions)) / max(1, all_positions),
        "layers_unseen": len(hidden),
        "kept_because": dict(reasons.most_common(_MOST_REASONS)),
    }


def _cut(model: nn.Module, graph: ChannelGraph, case: Case, result: dict[str, Any]) -> None:
    """Cut channels at random and compare with the masked network; `model` is masked in place."""
    dropped = random_drop(graph, RATIO)
    result.update(dropped=len(dropped), stage="cut")
    if not len(dropped):
        result["verdict"] = NOTHING
        return
    pruned = cut(model, graph, dropped, carry=False)
    result["left"] = count_parameters(pruned) / result["parameters"]
    result["stage"] = "compare"
    dense = outputs_at(model, case.image_chw)
    mask_(model, graph, dropped)
    masked = outputs_at(model, case.image_chw)
    result["effect"] = largest_difference(masked, dense)
    result["error"] = largest_difference(outputs_at(pruned, case.image_chw), masked)
    further = further_outputs(model, case.image_chw)
    if further is not None:
        found = further_outputs(pruned, case.image_chw)
        result["further_error"] = float("inf") if found is None else largest_difference(found, further)
    errors = max(result["error"], result.get("further_error", 0.0))
    is_silent = result["effect"] < _LEAST_EFFECT
    result["verdict"] = "differs" if errors >= EXACT else "no effect" if is_silent else "exact"
    if errors >= EXACT:
        # A masked channel may be a constant, such as a bias for the whole map; nobody may read it.
        deafen_(model, graph, dropped)
        result["error"] = largest_difference(outputs_at(pruned, case.image_chw), outputs_at(model, case.image_chw))
        if result["error"] < EXACT:
            result["verdict"] = CONSTANTS_ASIDE
            result.pop("further_error", None)
