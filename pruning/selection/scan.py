"""Find how far a network can be pruned without fine-tuning: mAP right after the cut, over shares of channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from models.detector import Detector
from pruning.selection.planner import Planner
from pruning.surgery.cut import cut
from utils.errors import PruningError
from utils.plots.pruning import plot_scan

LOGGER = logging.getLogger(__name__)

# Step between the shares tried first, and number of bisections between the last good and the first bad share.
_STEP = 0.1
_REFINEMENTS = 4
# Width to which the cliff is narrowed down.
_CLIFF_WIDTH = 0.02
# Loss, as a share of the mAP, beyond which further cuts are not worth measuring.
_LOST = 0.8


@dataclass(frozen=True, kw_only=True)
class ScanPoint:
    """mAP of one cut.

    Attributes:
        percent: Share of channels below the threshold.
        AP50, AP: mAP50 and mAP right after the cut.
    """

    percent: float
    AP50: float
    AP: float


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of a scan over cuts.

    Attributes:
        points: Measured cuts by ascending percent, the uncut network first.
        recommended: Largest percent up to which the loss of mAP is within the tolerance.
        cliff: Two percents between which mAP falls most steeply.
        limit: Percent above which a layer would lose all of its channels.
    """

    points: tuple[ScanPoint, ...]
    recommended: float
    cliff: tuple[float, float]
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    def as_text(self) -> str:
        """Return one line per cut, then the recommendation."""
        lines = [f"{'percent':>8} {'mAP50':>7} {'mAP':>7}"]
        lines += [f"{point.percent:8.1%} {point.AP50:7.3f} {point.AP:7.3f}" for point in self.points]
        low, high = self.cliff
        lines.append(f"recommended: --percent {self.recommended:.3f}; steepest fall from {low:.1%} to {high:.1%}")
        return "\n".join(lines)

    def plot(self, path: Path) -> None:
        """Plot mAP over the share of pruned channels."""
        scores = {"mAP50": [point.AP50 for point in self.points], "mAP": [point.AP for point in self.points]}
        percents = [point.percent for point in self.points]
        plot_scan(percents, scores, path, recommended=self.recommended, limit=self.limit)


def scan(
    planner: Planner, measure: Callable[[Detector], tuple[float, float]], *, tolerance: float, carry: bool
) -> Scan:
    """Cut the whole network at growing shares, and measure each cut.

    Args:
        planner: Planner of the network.
        measure: Function that returns mAP50 and mAP of a network.
        tolerance: mAP that the recommended share may lose.
        carry: Whether to carry the constants of cut channels into the layers that read them.

    Raises:
        PruningError: The mAP of the uncut network is not above the tolerance, so there is no cliff to find.
    """
    cuts = _Cuts(planner=planner, measure=measure, carry=carry)
    whole = cuts.score(0.0)
    if whole <= tolerance:
        raise PruningError(
            f"the network has mAP {whole:.3f} on this data before any channel is cut, expected more than --tolerance "
            f"{tolerance:g}; check --data and --img-size, or leave --drop-bottlenecks out"
        )
    recommended = _last_good(cuts, least=whole - tolerance, hopeless=whole * (1 - _LOST))
    cliff = _steepest(cuts)
    return Scan(
        points=tuple(cuts.points[percent] for percent in sorted(cuts.points)),
        recommended=recommended,
        cliff=cliff,
        limit=planner.allocator.limit.percent,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cuts:
    """Cuts the network and measures it, once per share."""

    planner: Planner
    measure: Callable[[Detector], tuple[float, float]]
    carry: bool
    points: dict[float, ScanPoint] = field(default_factory=dict)

    def score(self, percent: float) -> float:
        """Return the mAP right after cutting this share."""
        if percent not in self.points:
            planner = self.planner
            network: Any = planner.model
            if percent:
                allocation = planner.allocator.at(planner.allocator.threshold_at(percent))
                network = cut(planner.model, planner.graph, allocation.dropped, carry=self.carry)
            ap50, ap = self.measure(network)
            self.points[percent] = ScanPoint(percent=percent, AP50=ap50, AP=ap)
            LOGGER.info("cut %.1f %%: mAP50 %.3f mAP %.3f", 100 * percent, ap50, ap)
        return self.points[percent].AP


def _last_good(cuts: _Cuts, *, least: float, hopeless: float) -> float:
    """Find the largest share up to which mAP is at least `least`; coarse cuts continue until mAP is `hopeless`."""
    grid = [round(_STEP * number, 3) for number in range(1, round(1 / _STEP))]
    good, bad = _first_bad(grid, lambda percent: cuts.score(percent) >= least)
    for percent in grid:
        lowest = cuts.points[max(cuts.points)].AP
        if percent > bad and lowest > hopeless:
            cuts.score(percent)
    for _ in range(_REFINEMENTS):
        middle = _middle(good, bad)
        good, bad = (middle, bad) if cuts.score(middle) >= least else (good, middle)
    return good


def _steepest(cuts: _Cuts) -> tuple[float, float]:
    """Find the two shares between which mAP falls most per channel, bisecting until they are close."""
    low, high = _cliff(cuts.points)
    while high - low > _CLIFF_WIDTH and cuts.points[high].AP < cuts.points[low].AP:
        cuts.score(_middle(low, high))
        low, high = _cliff(cuts.points)  # one half is at least as steep as the whole
    return low, high


def _middle(low: float, high: float) -> float:
    return round((low + high) / 2, 4)


def _first_bad(grid: Sequence[float], is_good: Callable[[float], bool]) -> tuple[float, float]:
    """Return the last good share and the first bad one, which is just under 1 if all are good."""
    good = 0.0
    for percent in grid:
        if not is_good(percent):
            return good, percent
        good = percent
    return good, 0.999


def _cliff(points: Mapping[float, ScanPoint]) -> tuple[float, float]:
    """Return the neighbouring shares between which mAP falls most per channel."""

    def slope(pair: tuple[float, float]) -> float:
        low, high = pair
        return (points[low].AP - points[high].AP) / (high - low)

    return max(pairwise(sorted(points)), key=slope)
