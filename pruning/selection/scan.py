"""Find how far a network can be pruned without fine-tuning: its score right after cuts of growing shares."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import nn

from engine.evaluation.evaluator import label
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
# Loss, as a share of the score, beyond which further cuts are not worth measuring.
_LOST = 0.8


@dataclass(frozen=True, kw_only=True)
class ScanPoint:
    """Scores of one cut.

    Attributes:
        percent: Share of channels below the threshold.
        headline: Scores right after the cut, by name; the last one decides.
    """

    percent: float
    headline: Mapping[str, float]

    @property
    def score(self) -> float:
        """The score that decides, such as mAP50-95 or accuracy."""
        return list(self.headline.values())[-1]

    def as_text(self) -> str:
        """Return the scores for a line."""
        return " ".join(f"{label(name)} {value:.3f}" for name, value in self.headline.items())


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Result of a scan over cuts.

    Attributes:
        points: Measured cuts by ascending percent, the uncut network first.
        recommended: Largest percent up to which the loss is within the tolerance.
        cliff: Two percents between which the score falls most steeply.
        limit: Percent above which a layer would lose all of its channels.
    """

    points: tuple[ScanPoint, ...]
    recommended: float
    cliff: tuple[float, float]
    limit: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        points = [{"percent": point.percent, **point.headline} for point in self.points]
        return {**asdict(self), "points": points}

    def as_text(self) -> str:
        """Return one line per cut, then the recommendation."""
        lines = [" ".join([f"{'percent':>8}", *(f"{label(name):>7}" for name in self.points[0].headline)])]
        for point in self.points:
            lines.append(" ".join([f"{point.percent:8.1%}", *(f"{value:7.3f}" for value in point.headline.values())]))
        low, high = self.cliff
        lines.append(f"recommended: --percent {self.recommended:.3f}; steepest fall from {low:.1%} to {high:.1%}")
        return "\n".join(lines)

    def plot(self, path: Path) -> None:
        """Plot the scores over the share of pruned channels."""
        names = self.points[0].headline
        scores = {label(name): [point.headline[name] for point in self.points] for name in names}
        percents = [point.percent for point in self.points]
        plot_scan(percents, scores, path, recommended=self.recommended, limit=self.limit)


def scan(
    planner: Planner, measure: Callable[[nn.Module], Mapping[str, float]], *, tolerance: float, carry: bool
) -> Scan:
    """Cut the whole network at growing shares, and measure each cut.

    Args:
        planner: Planner of the network.
        measure: Function that returns the scores of a network, by name; the last one decides.
        tolerance: Score that the recommended share may lose.
        carry: Whether to carry the constants of cut channels into the layers that read them.

    Raises:
        PruningError: The score of the uncut network is not above the tolerance, so there is no cliff to find.
    """
    cuts = _Cuts(planner=planner, measure=measure, carry=carry)
    whole = cuts.score(0.0)
    if whole <= tolerance:
        raise PruningError(
            f"the network has {cuts.points[0.0].as_text()} on this data before any channel is cut, expected more "
            f"than --tolerance {tolerance:g}; check --data and --img-size, or leave --drop-bottlenecks out"
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
    measure: Callable[[nn.Module], Mapping[str, float]]
    carry: bool
    points: dict[float, ScanPoint] = field(default_factory=dict)

    def score(self, percent: float) -> float:
        """Return the score right after cutting this share."""
        if percent not in self.points:
            planner = self.planner
            network: Any = planner.model
            if percent:
                allocation = planner.allocator.at(planner.allocator.threshold_at(percent))
                network = cut(planner.model, planner.graph, allocation.dropped, carry=self.carry)
            self.points[percent] = ScanPoint(percent=percent, headline=dict(self.measure(network)))
            LOGGER.info("cut %.1f %%: %s", 100 * percent, self.points[percent].as_text())
        return self.points[percent].score


def _last_good(cuts: _Cuts, *, least: float, hopeless: float) -> float:
    """Find the largest share whose score is at least `least`; coarse cuts continue until it is `hopeless`."""
    grid = [round(_STEP * number, 3) for number in range(1, round(1 / _STEP))]
    good, bad = _first_bad(grid, lambda percent: cuts.score(percent) >= least)
    for percent in grid:
        lowest = cuts.points[max(cuts.points)].score
        if percent > bad and lowest > hopeless:
            cuts.score(percent)
    for _ in range(_REFINEMENTS):
        middle = _middle(good, bad)
        good, bad = (middle, bad) if cuts.score(middle) >= least else (good, middle)
    return good


def _steepest(cuts: _Cuts) -> tuple[float, float]:
    """Find the two shares between which the score falls most per channel, bisecting until they are close."""
    low, high = _cliff(cuts.points)
    while high - low > _CLIFF_WIDTH and cuts.points[high].score < cuts.points[low].score:
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
    """Return the neighbouring shares between which the score falls most per channel."""

    def slope(pair: tuple[float, float]) -> float:
        low, high = pair
        return (points[low].score - points[high].score) / (high - low)

    return max(pairwise(sorted(points)), key=slope)
