"""How far a network can be cut before it needs fine-tuning: mAP right after the cut, over shares of channels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from models.detector import Detector
from pruning.planning import Planner
from pruning.surgery import cut
from utils.errors import PruningError
from utils.plots.pruning import plot_scan

LOGGER = logging.getLogger(__name__)

# Shares tried first; then halfway between the last good and the first bad one, this often.
_STEP = 0.1
_REFINEMENTS = 4
# The cliff is found to this width.
_CLIFF_WIDTH = 0.02
# Beyond this share of the mAP lost, further cuts say nothing.
_LOST = 0.8


@dataclass(frozen=True, kw_only=True)
class ScanPoint:
    """One cut.

    Attributes:
        percent: Share of channels below the threshold.
        AP50, AP: mAP right after cutting.
    """

    percent: float
    AP50: float
    AP: float


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What the cuts showed.

    Attributes:
        points: By growing percent, the uncut network first.
        recommended: The largest percent up to which mAP stays within the tolerance.
        cliff: Between which two percents mAP falls most steeply.
        limit: Percent beyond which a layer would be empty.
    """

    points: tuple[ScanPoint, ...]
    recommended: float
    cliff: tuple[float, float]
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "points": [asdict(point) for point in self.points]}

    def as_text(self) -> str:
        """A line per cut, then what follows from them."""
        lines = [f"{'percent':>8} {'mAP50':>7} {'mAP':>7}"]
        lines += [f"{point.percent:8.1%} {point.AP50:7.3f} {point.AP:7.3f}" for point in self.points]
        low, high = self.cliff
        lines.append(f"recommended: --percent {self.recommended:.3f}; steepest fall from {low:.1%} to {high:.1%}")
        return "\n".join(lines)

    def plot(self, path: Path) -> None:
        """Draw mAP over the share cut."""
        scores = {"mAP50": [point.AP50 for point in self.points], "mAP": [point.AP for point in self.points]}
        percents = [point.percent for point in self.points]
        plot_scan(percents, scores, path, recommended=self.recommended, limit=self.limit)


def scan(
    planner: Planner, measure: Callable[[Detector], tuple[float, float]], *, tolerance: float, carry: bool
) -> Scan:
    """Cut at growing shares, each from the whole network, and measure.

    Args:
        planner: Of the network.
        measure: Gives mAP50 and mAP of a network.
        tolerance: mAP the recommended share may lose.
        carry: Whether constants of cut channels are carried.

    Raises:
        PruningError: The uncut network finds no more than the tolerance, so there is no cliff to find.
    """
    cuts = _Cuts(planner=planner, measure=measure, carry=carry)
    whole = cuts.score(0.0)
    if whole <= tolerance:
        raise PruningError(
            f"the network has mAP {whole:.3f} on this data before any channel is cut, no more than --tolerance "
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
    """Networks cut and measured, each share once."""

    planner: Planner
    measure: Callable[[Detector], tuple[float, float]]
    carry: bool
    points: dict[float, ScanPoint] = field(default_factory=dict)

    def score(self, percent: float) -> float:
        """The mAP right after cutting this share."""
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
    """The largest share up to which mAP is at least `least`; coarse cuts go on until mAP is `hopeless`."""
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
    """Between which two shares mAP falls most per channel, with cuts in between until they are near."""
    low, high = _cliff(cuts.points)
    while high - low > _CLIFF_WIDTH and cuts.points[high].AP < cuts.points[low].AP:
        cuts.score(_middle(low, high))
        low, high = _cliff(cuts.points)  # a half of it is at least as steep, so nothing else is
    return low, high


def _middle(low: float, high: float) -> float:
    return round((low + high) / 2, 4)


def _first_bad(grid: Sequence[float], is_good: Callable[[float], bool]) -> tuple[float, float]:
    """The last good share before the first bad one, and that one; just under 1 where all are good."""
    good = 0.0
    for percent in grid:
        if not is_good(percent):
            return good, percent
        good = percent
    return good, 0.999


def _cliff(points: Mapping[float, ScanPoint]) -> tuple[float, float]:
    """The neighbours between which mAP falls most per channel."""

    def slope(pair: tuple[float, float]) -> float:
        low, high = pair
        return (points[low].AP - points[high].AP) / (high - low)

    return max(pairwise(sorted(points)), key=slope)
