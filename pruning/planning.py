"""From a network and settings to a plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from models.detector import Detector
from pruning.allocation import Allocation, Allocator, ranked_ids, ranks_among
from pruning.bottlenecks import drop_bottlenecks
from pruning.channel_ids import FloatArray, IntArray
from pruning.cost import ChannelCost, per_cost
from pruning.criteria import CRITERIA, random_order
from pruning.graph import ChannelGraph
from pruning.plan import PruningPlan
from pruning.prune_config import ALL, DEFAULT_PERCENT, PruneConfig, Target, parse_target, training_config
from pruning.scales import DENSE_SHARE, NEAR_ZERO, ScaleStats
from pruning.shortcuts import Shortcuts, candidate_ids, shortcut_bottleneck_names
from pruning.taylor import detector_taylor
from utils.errors import PruningError
from utils.fingerprint import network_fingerprint
from utils.run_folder import plain

LOGGER = logging.getLogger(__name__)

# What sparsity training draws to zero, by the criterion that ranks by it.
_DRAWN = {
    "bn_gamma": "scales",
    "kernel_l1": "kernels (of their layer's mean)",
    "kernel_l2": "kernels (of their layer's mean)",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
    """Everything that plans for one network share.

    Attributes:
        model: The network after bottlenecks were removed.
        graph: Its channels.
        bottlenecks: Those that were removed.
        fingerprint: Of the network before.
        allocator: Decides what goes.
        config: The settings.
    """

    model: Detector
    graph: ChannelGraph
    bottlenecks: tuple[str, ...]
    fingerprint: str
    allocator: Allocator
    config: PruneConfig

    @classmethod
    def of(cls, model: Detector, config: PruneConfig) -> Planner:
        """Trace the network and rank its channels.

        Raises:
            PruningError: Nothing may be pruned, or the criterion cannot rank this network.
        """
        bottlenecks = _bottlenecks(model, config.drop_bottlenecks)
        fingerprint = network_fingerprint(model)
        if bottlenecks:
            model = drop_bottlenecks(model, bottlenecks)
        graph = ChannelGraph.of(model)
        candidates = free_ids(model, graph, shortcuts=config.shortcuts, protect=config.protect)
        importance = _importance(model, graph, candidates, config)
        if config.cost_power:
            cost = ChannelCost.of(model, graph, config.image_chw)
            importance = per_cost(importance, cost, parse_target(config.target).quantity, power=config.cost_power)
        ranked = ranked_ids(candidates, importance)
        if len(ranked) < len(candidates):
            first, _ = graph.owners(int(np.setdiff1d(candidates, ranked)[0]))[0]
            LOGGER.warning(
                "%d of %d channels stay, since %s tells nothing of them: they pass no batch norm, first %s; "
                "--criterion kernel_l1 ranks all",
                len(candidates) - len(ranked),
                len(candidates),
                config.criterion,
                first,
            )
        return cls(
            model=model,
            graph=graph,
            bottlenecks=bottlenecks,
            fingerprint=fingerprint,
            config=config,
            allocator=Allocator(
                graph=graph,
                importance=importance,
                candidates=ranked,
                rounding=config.rounding,
                min_channels=config.min_channels,
            ),
        )

    @property
    def threshold(self) -> float:
        """Below which channels go, where a share was asked for."""
        if self.config.is_mixed:
            return 0.0  # importance is already what a channel has above its two thresholds
        percent = self.config.percent
        if percent is None:
            percent = 0.0 if self.bottlenecks else DEFAULT_PERCENT
        return self.allocator.threshold_at(percent)

    def allocate(self) -> Allocation:
        """What goes, as the settings ask.

        Raises:
            PruningError: A target cannot be reached; under `strict`, a layer would lose all of its channels.
        """
        allocation = self.decide()
        if allocation.raised and self.config.strict:
            raise PruningError(
                f"layers {', '.join(allocation.raised[:3])} would keep fewer than --min-channels "
                f"{self.config.min_channels}; {self._least_remedy()} or leave out --strict"
            )
        if allocation.raised:
            LOGGER.warning(
                "%d layers would keep fewer than %d channels and keep that many: %s",
                len(allocation.raised),
                self.config.min_channels,
                ", ".join(allocation.raised),
            )
        return allocation

    def _least_remedy(self) -> str:
        """What to change where a layer would lose too much."""
        if self.config.is_mixed:
            return "lower --bn-percent and --conv-percent"
        limit = self.allocator.limit
        return (
            f"the highest threshold that leaves every layer one is {limit.threshold:.4g}, --percent "
            f"{limit.percent:.3f}; {'raise --target' if self.config.target else 'lower --percent'}"
        )

    def decide(self) -> Allocation:
        """As `allocate`, but layers that had to be mended are neither told of nor refused."""
        if not self.config.target:
            return self.allocator.at(self.threshold)
        cost = ChannelCost.of(self.model, self.graph, self.config.image_chw)
        return at_target(self.allocator, cost, parse_target(self.config.target))

    def plan(self, allocation: Allocation) -> PruningPlan:
        """As a file can hold it."""
        return PruningPlan.of(
            self.model,
            self.graph,
            allocation.dropped,
            settings={**plain(self.config), "threshold": allocation.threshold},
            bottlenecks=self.bottlenecks,
            fingerprint=self.fingerprint,
        )

    def describe(self, allocation: Allocation) -> str:
        """Threshold, limit and how near to zero the channels are, in lines for people."""
        limit, count = self.allocator.limit, len(self.allocator.candidates)
        lines = [
            f"{len(allocation.dropped)} of {count} channels go ({len(allocation.dropped) / count:.1%}), threshold "
            f"{allocation.threshold:.4g}; its limit is {limit.threshold:.4g} (--percent {limit.percent:.3f}), beyond "
            "it some layer would have none"
        ]
        if self.config.criterion == "bn_gamma" and not self.config.is_mixed and not self.config.cost_power:
            stats = ScaleStats.of(self.allocator, aim=self.config.percent or DEFAULT_PERCENT)
            lines.append(f"scales: {stats.as_text()}")
        if dense := self._dense_findings():
            lines.append(
                f"warning: this network was not trained sparse: {', '.join(dense)}; cutting will cost mAP until "
                "fine-tuned; train_sparsity.py first"
            )
        return "\n".join(lines)

    def _dense_findings(self) -> list[str]:
        """What tells that nothing was drawn to zero of what the settings rank by; empty where something was."""
        found = []
        for name in ("bn_gamma", "kernel_l1") if self.config.is_mixed else (self.config.criterion,):
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


def at_target(allocator: Allocator, cost: ChannelCost, target: Target) -> Allocation:
    """Drop the fewest channels with which the network costs no more than the target.

    Raises:
        PruningError: It cannot be reached.
    """
    count, what = (cost.macs, "MACs") if target.quantity == "macs" else (cost.parameters, "parameters")
    return allocator.at_cost(count, target.absolute(count()), what=what)


def free_ids(model: nn.Module, graph: ChannelGraph, *, shortcuts: Shortcuts, protect: Sequence[str]) -> IntArray:
    """Channels that may go, sorted (n,): all that shortcuts leave free, without those of protected layers.

    Raises:
        PruningError: A pattern fits no layer.
    """
    return np.setdiff1d(candidate_ids(model, graph, shortcuts), protected_ids(graph, protect))


def protected_ids(graph: ChannelGraph, patterns: Sequence[str]) -> IntArray:
    """Channels that layers of these names make.

    Raises:
        PruningError: A pattern fits no layer.
    """
    found = [np.empty(0, dtype=np.int64)]
    for pattern in patterns:
        matching = [
            layer.output_ids
            for name, layer in graph.layers.items()
            if fnmatchcase(name, pattern) and not layer.is_norm
        ]
        if not matching:
            names = [name for name, layer in graph.layers.items() if not layer.is_norm]
            raise PruningError(
                f"--protect {pattern} matches no layer; layers are such as {', '.join(names[:3])}; use * for any part"
            )
        found += matching
    return np.unique(np.concatenate(found))


def _bottlenecks(model: Detector, wanted: Sequence[str]) -> tuple[str, ...]:
    if tuple(wanted) != (ALL,):
        return tuple(wanted)
    names = shortcut_bottleneck_names(model)
    if not names:
        raise PruningError("--drop-bottlenecks all: this network has no shortcut bottlenecks; leave it out")
    return names


def _importance(model: Detector, graph: ChannelGraph, candidates: IntArray, config: PruneConfig) -> FloatArray:
    if config.is_mixed:
        shares = {"bn_gamma": config.bn_percent or 0.0, "kernel_l1": config.conv_percent or 0.0}
        return _least_margin([(CRITERIA[name](model, graph), share) for name, share in shares.items()], candidates)
    if config.criterion == "taylor":
        return detector_taylor(model, graph, config=training_config(config), batches=config.taylor_batches)
    if config.criterion == "random":
        return random_order(model, graph, seed=config.seed)
    return CRITERIA[config.criterion](model, graph)


def _least_margin(criteria: Sequence[tuple[FloatArray, float]], candidates: IntArray) -> FloatArray:
    """Importance that is negative where a channel lies below the threshold of any criterion.

    Args:
        criteria: Importance by id (num_ids,), and the share of candidates below its threshold.
        candidates: Ids that may go (n,).

    Returns:
        (num_ids,): by how many ranks, as a share of all, the worst criterion lies above its threshold.
    """
    least = np.full(len(criteria[0][0]), np.nan)
    for importance, share in criteria:
        ranks = ranks_among(candidates, importance)[candidates]
        margins = (ranks - int(share * len(candidates))) / len(candidates)
        least[candidates] = np.fmin(least[candidates], margins)
    return least
