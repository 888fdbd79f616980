"""What a user could take instead: the upper envelope of the alternatives, and how far a network lies above it.

The envelope is the upper hull of mAP over log ms, so a network between two alternatives is compared with the straight
line between them, which is the hardest comparison. A slower network is compared with the best of all; where no
alternative is as fast there is nothing to compare with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev, variance
from typing import Any

import numpy as np

from utils.metrics.bootstrap import Interval, interval

Array = np.ndarray[Any, Any]
# Alternatives with weights that sum to 1.
Mixture = list[tuple["Point", float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A network in one precision, mean over its seeds.

    Attributes:
        line: Curve that it lies on, such as "dense yolov5s"; names that begin with "ours" are ours.
        name: Name within all of them, such as "dense yolov5s, 320 px".
        precision: Precision on the runtime.
        ms: Milliseconds.
        scores: mAP50-95 of each seed, mean of both splits, 0 to 1.
        drawn: mAP50-95 of draws of images (D,), mean of both splits and of the seeds; the draws of all points agree.
        passed: Whether every export agrees with its network.
    """

    line: str
    name: str
    precision: str
    ms: float
    scores: Sequence[float]
    drawn: Array
    passed: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it is no alternative."""
        return self.line.startswith("ours")

    @property
    def score(self) -> float:
        """Mean mAP50-95 of the seeds."""
        return mean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Standard deviation between seeds; None for a single one."""
        return stdev(self.scores) if len(self.scores) > 1 else None


def envelope(points: Sequence[Point]) -> list[Point]:
    """Return the corners of the upper hull over log ms, fastest first; none is slower than the best one."""
    corners: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, -point.score)):
        if corners and point.score <= corners[-1].score:
            continue  # slower and no better
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _slope(one: Point, two: Point) -> float:
    """Return mAP per log ms between two points; the second is slower."""
    return (two.score - one.score) / max(math.log(two.ms / one.ms), 1e-12)


def best_at(corners: Sequence[Point], ms: float) -> Mixture:
    """Return the corners, with weights, whose mean is the envelope at a speed; empty if none is as fast."""
    if not corners or ms < corners[0].ms:
        return []
    if ms >= corners[-1].ms:
        return [(corners[-1], 1.0)]
    after = next(place for place, corner in enumerate(corners) if corner.ms > ms)
    fast, slow = corners[after - 1], corners[after]
    weight = math.log(ms / fast.ms) / math.log(slow.ms / fast.ms)
    return [(fast, 1 - weight), (slow, weight)]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A network of ours against the best alternative at its speed.

    Attributes:
        best: mAP50-95 of the best alternative.
        difference: Ours minus that.
        interval: Bounds of 95 % of the differences over draws of the same images.
        error: Standard error of the difference over seeds; None where the deviation between seeds is not known.
    """

    best: float
    difference: float
    interval: Interval
    error: float | None


def compare(point: Point, points: Sequence[Point], *, deviation: float | None) -> Comparison | None:
    """Compare a network with the alternatives in its precision or in float32, which its user could take too.

    Args:
        point: Network of ours.
        points: All networks; those of ours are left out.
        deviation: Standard deviation between seeds, as of `seed_deviation`.

    Returns:
        The comparison; None where no alternative is as fast.
    """
    others = [other for other in points if not other.is_ours and other.precision in (point.precision, "fp32")]
    mixture = best_at(envelope(others), point.ms)
    if not mixture:
        return None
    best = sum(weight * other.score for other, weight in mixture)
    drawn = np.sum([weight * other.drawn for other, weight in mixture], axis=0)
    inverse = 1 / len(point.scores) + sum(weight**2 / len(other.scores) for other, weight in mixture)
    return Comparison(
        best=best,
        difference=point.score - best,
        interval=interval(point.drawn - drawn),
        error=None if deviation is None else deviation * math.sqrt(inverse),
    )


def seed_deviation(points: Sequence[Point]) -> float | None:
    """Return the standard deviation of mAP between seeds, pooled over the points that have several; None for none."""
    several = [point.scores for point in points if len(point.scores) > 1]
    if not several:
        return None
    squares = sum((len(scores) - 1) * variance(scores) for scores in several)
    return math.sqrt(squares / sum(len(scores) - 1 for scores in several))
