"""Prune by scales and by kernels at once: a channel is dropped if one of the two is below its own threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.choices import CriterionName
from pruning.importance.criteria import CRITERIA
from pruning.selection.allocation import Allocator, ranks_among
from pruning.selection.settings import PlanSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedCriteria:
    """Two criteria, each with a share of the candidates that it puts below its threshold.

    Attributes:
        candidates: Ids that may be dropped (n,).
        values: Importance by id (num_ids,) of each criterion; NaN ranks last.
        shares: Share below the threshold of each criterion; None drops nothing by it.
    """

    candidates: IntArray
    values: Mapping[CriterionName, FloatArray]
    shares: Mapping[CriterionName, float | None]

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, candidates: IntArray, settings: PlanSettings) -> MixedCriteria:
        """Rate the channels of a network by its scales and by its kernels."""
        shares: dict[CriterionName, float | None] = {
            "bn_gamma": settings.bn_percent,
            "kernel_l1": settings.conv_percent,
        }
        values = {name: CRITERIA[name](model, graph) for name in shares}
        return cls(candidates=candidates, values=values, shares=shares)

    @property
    def importance(self) -> FloatArray:
        """The ranks by which the worse criterion exceeds its threshold, as a share of the candidates (num_ids,).

        It is negative where a channel is below one of the thresholds.
        """
        return self._least_margin(self.shares)

    @property
    def thresholds(self) -> dict[CriterionName, float]:
        """Importance below which channels are dropped, by each criterion that has a share."""
        return {
            name: float(np.sort(self.values[name][self.candidates])[self._count(share)])
            for name, share in self.shares.items()
            if share is not None
        }

    def limits(self, allocator: Allocator) -> dict[CriterionName, float]:
        """Return the shares up to which every layer keeps a channel, raised or lowered by the same amount."""
        given = {name: share for name, share in self.shares.items() if share is not None}
        margin = replace(allocator, importance=self._least_margin(given)).limit.threshold
        return {name: max(0.0, share + margin) for name, share in given.items()}

    def limit_text(self, allocator: Allocator) -> str:
        """Format `limits` as flags."""
        return " and ".join(f"{_FLAGS[name]} {share:.3f}" for name, share in self.limits(allocator).items())

    def as_text(self, allocator: Allocator) -> str:
        """Report both thresholds, and the shares above which a layer would lose all its channels."""
        below = [
            f"{_WORDS[name].format(threshold)} ({_FLAGS[name]} {self.shares[name]:g})"
            for name, threshold in self.thresholds.items()
        ]
        return f"{' or '.join(below)}; above {self.limit_text(allocator)} a layer would lose all its channels"

    def _least_margin(self, shares: Mapping[CriterionName, float | None]) -> FloatArray:
        least = np.full(len(next(iter(self.values.values()))), np.nan)
        for name, share in shares.items():
            ranks = ranks_among(self.candidates, self.values[name])[self.candidates]
            margins = (ranks - self._count(share)) / len(self.candidates)
            least[self.candidates] = np.fmin(least[self.candidates], margins)
        return least

    def _count(self, share: float | None) -> int:
        """Return the number of candidates below the threshold of a share."""
        return int((share or 0.0) * len(self.candidates))


_FLAGS: Mapping[CriterionName, str] = {"bn_gamma": "--bn-percent", "kernel_l1": "--conv-percent"}
_WORDS: Mapping[CriterionName, str] = {
    "bn_gamma": "with scales below {:.4g}",
    "kernel_l1": "with kernels below {:.4g} of their layer's mean",
}
