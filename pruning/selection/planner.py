"""Build a pruning plan from a network and settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from models.fingerprint import network_fingerprint
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.channels.shortcuts import shortcut_bottleneck_names
from pruning.choices import MEASURED_CRITERIA
from pruning.importance.criteria import CRITERIA, random_order
from pruning.selection.allocation import Allocation, Allocator, ranked_ids
from pruning.selection.candidates import free_ids, least_by_group, least_widths
from pruning.selection.costs import Costs, at_target, uniform_share
from pruning.selection.mixed import MixedCriteria
from pruning.selection.scales import DENSE_SHARE, NEAR_ZERO, ScaleStats
from pruning.selection.settings import ALL, DEFAULT_PERCENT, PlanSettings
from pruning.surgery.bottlenecks import drop_bottlenecks
from pruning.surgery.plan import PruningPlan
from utils.errors import PruningError
from utils.storage.run_folder import plain

LOGGER = logging.getLogger(__name__)

# Parameters that sparsity training draws to zero, by the criterion that ranks channels by them.
_DRAWN = {
    "bn_gamma": "scales",
    "kernel_l1": "kernels (relative to their layer's mean)",
    "kernel_l2": "kernels (relative to their layer's mean)",
}


# Measures importance (num_ids,) on data, by one of `MEASURED_CRITERIA`.
MeasureImportance: TypeAlias = Callable[[nn.Module, ChannelGraph], FloatArray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
    """Traces and ranks a network once, and makes plans for it.

    Attributes:
        model: Network after bottlenecks were removed.
        graph: Channels of `model`.
        bottlenecks: Paths of the removed bottlenecks.
        fingerprint: Fingerprint of the network before bottlenecks were removed.
        allocator: Allocator that chooses the channels to drop.
        settings: Settings of the choice.
    """

    model: nn.Module
    graph: ChannelGraph
    bottlenecks: tuple[str, ...]
    fingerprint: str
    allocator: Allocator
    settings: PlanSettings

    @classmethod
    def of(cls, model: nn.Module, settings: PlanSettings, *, measure: MeasureImportance | None = None) -> Planner:
        """Trace the network and rank its channels.

        Args:
            model: Network to prune.
            settings: Settings of the choice.
            measure: Function that measures the importance if the criterion needs data.

        Raises:
            PruningError: No channel can be pruned, or the criterion cannot rank this network.
        """
        bottlenecks = _bottlenecks(model, settings.drop_bottlenecks)
        fingerprint = network_fingerprint(model)
        if bottlenecks:
            model = drop_bottlenecks(model, bottlenecks)
        graph = ChannelGraph.of(model, image_chw=settings.trace_chw)
        candidates = free_ids(model, graph, shortcuts=settings.shortcuts, protect=settings.protect)
        importance = _importance(model, graph, candidates, settings, measure)
        if settings.cost_power and settings.target:
            costs = _costs(model, graph, settings)
            importance = costs.weigh(importance, settings.target.quantity, power=settings.cost_power)
        ranked = ranked_ids(candidates, importance)
        if len(ranked) < len(candidates):
            first, _ = graph.owners(int(np.setdiff1d(candidates, ranked)[0]))[0]
            LOGGER.warning(
                "%d of %d channels are kept: %s cannot rank them, since they pass no batch norm (first: layer %s); "
                "--criterion kernel_l1 ranks all",
                len(candidates) - len(ranked),
                len(candidates),
                settings.criterion,
                first,
            )
        allocator = Allocator(
            graph=graph,
            importance=importance,
            candidates=ranked,
            rounding=settings.rounding,
            min_channels=settings.min_channels,
            least=least_by_group(graph, least_widths(graph, settings.limits)),
            widths=_fast_widths(model, graph, settings),
        )
        if settings.balance and settings.target:
            uniform = uniform_share(allocator, _costs(model, graph, settings), settings.target)
            allocator = replace(allocator, min_share=settings.balance * uniform)
        return cls(
            model=model,
            graph=graph,
            bottlenecks=bottlenecks,
            fingerprint=fingerprint,
            settings=settings,
            allocator=allocator,
        )

    @property
    def threshold(self) -> float:
        """Importance below which channels are dropped, if the settings give a share and no target."""
        if self.settings.is_mixed:
            return 0.0  # importance is already the margin above the two thresholds
        percent = self.settings.percent
        if percent is None:
            percent = 0.0 if self.bottlenecks else DEFAULT_PERCENT
        return self.allocator.threshold_at(percent)

    def allocate(self) -> Allocation:
        """Choose the channels to drop, and warn of layers that would keep too few.

        Raises:
            PruningError: A target cannot be reached, or with `strict` a layer would keep fewer than `min_channels`.
        """
        allocation = self.decide()
        if allocation.raised and self.settings.strict:
            raise PruningError(
                f"layers {', '.join(allocation.raised[:3])} would keep fewer than --min-channels "
                f"{self.settings.min_channels}; {self._least_remedy()} or leave out --strict"
            )
        if allocation.raised:
            LOGGER.warning(
                "%d %s would keep fewer than --min-channels %d, kept at that many: %s",
                len(allocation.raised),
                "layer" if len(allocation.raised) == 1 else "layers",
                self.settings.min_channels,
                ", ".join(allocation.raised),
            )
        return allocation

    def _least_remedy(self) -> str:
        """Return the advice for a layer that would lose too many channels."""
        if self.settings.is_mixed:
            return f"above {self._mixed.limit_text(self.allocator)} a layer would lose all its channels; lower them"
        limit = self.allocator.limit
        return (
            f"above {limit.threshold:.4g} (--percent {limit.percent:.3f}) a layer would lose all its channels; "
            f"{'raise --target' if self.settings.target else 'lower --percent'}"
        )

    @property
    def _mixed(self) -> MixedCriteria:
        """The criteria of scales and kernels, if both decide together."""
        return MixedCriteria.of(self.model, self.graph, self.allocator.candidates, self.settings)

    def decide(self) -> Allocation:
        """Choose the channels to drop, without a warning or error for layers that would keep too few.

        Raises:
            PruningError: A target cannot be reached.
        """
        if not self.settings.target:
            return self.allocator.at(self.threshold)
        return at_target(self.allocator, _costs(self.model, self.graph, self.settings), self.settings.target)

    def milliseconds(self, allocation: Allocation) -> float | None:
        """Return the predicted time without the dropped channels; None without a latency table."""
        if self.settings.latency is None:
            return None
        return _costs(self.model, self.graph, self.settings).amount("ms", allocation.dropped)

    def plan(self, allocation: Allocation, *, settings: Mapping[str, Any] | None = None) -> PruningPlan:
        """Build the plan of an allocation, with the settings of the command; None means the planner's."""
        settings = plain(replace(self.settings, latency=None)) if settings is None else settings
        threshold = self._mixed.thresholds if self.settings.is_mixed else allocation.threshold
        return PruningPlan.of(
            self.model,
            self.graph,
            allocation.dropped,
            settings={**settings, "threshold": threshold},
            bottlenecks=self.bottlenecks,
            fingerprint=self.fingerprint,
            importance=self.allocator.importance,
        )

    def describe(self, allocation: Allocation) -> str:
        """Report threshold, limit and how close to zero the channels are, in lines for people."""
        count = len(self.allocator.candidates)
        lines = [
            f"pruning {len(allocation.dropped)} of {count} channels ({len(allocation.dropped) / count:.1%}) "
            f"{self._threshold_text(allocation)}"
        ]
        if self.settings.criterion == "bn_gamma" and not self.settings.is_mixed and not self.settings.cost_power:
            stats = ScaleStats.of(self.allocator, aim=self.settings.percent or DEFAULT_PERCENT)
            lines.append(f"scales: {stats.as_text()}")
        if dense := self._dense_findings():
            lines.append(
                f"warning: this network was not trained sparse: {', '.join(dense)}; pruning will cost accuracy "
                "until fine-tuned; run train_sparsity.py first"
            )
        return "\n".join(lines)

    def _threshold_text(self, allocation: Allocation) -> str:
        if self.settings.is_mixed:
            return self._mixed.as_text(self.allocator)
        limit = self.allocator.limit
        return (
            f"below {allocation.threshold:.4g}; above {limit.threshold:.4g} (--percent {limit.percent:.3f}) a layer "
            "would lose all its channels"
        )

    def _dense_findings(self) -> list[str]:
        """Collect evidence that the network was not trained sparse; empty if it was."""
        found = []
        for name in ("bn_gamma", "kernel_l1") if self.settings.is_mixed else (self.settings.criterion,):
            if name not in _DRAWN:
                return []
            values = CRITERIA[name](self.model, self.graph)[self.allocator.candidates]
            below = float((values < NEAR_ZERO).mean())
            if below >= DENSE_SHARE:
                return []
            found.append(
                f"only {below:.1%} of {_DRAWN[name]} are below 1e-2, half of them above {np.median(values):.3g}"
            )
        return found


def _costs(model: nn.Module, graph: ChannelGraph, settings: PlanSettings) -> Costs:
    return Costs.of(model, graph, settings.image_chw, settings.latency)


def _fast_widths(model: nn.Module, graph: ChannelGraph, settings: PlanSettings) -> dict[int, tuple[int, ...]]:
    if not settings.has_fast_widths:
        return {}
    return _costs(model, graph, settings).latency.fast_widths(graph.groups)


def _bottlenecks(model: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    if tuple(wanted) != (ALL,):
        return tuple(wanted)
    names = shortcut_bottleneck_names(model)
    if not names:
        raise PruningError("--drop-bottlenecks all: this network has no shortcut bottlenecks; leave it out")
    return names


def _importance(
    model: nn.Module,
    graph: ChannelGraph,
    candidates: IntArray,
    settings: PlanSettings,
    measure: MeasureImportance | None,
) -> FloatArray:
    if settings.is_mixed:
        return MixedCriteria.of(model, graph, candidates, settings).importance
    if settings.criterion in MEASURED_CRITERIA:
        assert measure is not None, "this criterion needs data"
        return measure(model, graph)
    if settings.criterion == "random":
        return random_order(model, graph, seed=settings.seed)
    return CRITERIA[settings.criterion](model, graph)
