"""Measure how close to zero the scales of channels are, and judge a sparsity training or a cut by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from pruning.selection.allocation import Allocator

# A channel with a smaller scale hardly contributes.
NEAR_ZERO = 1e-2
_ZERO = 1e-3
# Below this share of channels near zero, a network was not trained sparse.
DENSE_SHARE = 0.01

# Share of the force to spend before the speed can be judged.
_EARLY = 0.15
# If the aim is reached before this share of the force is spent, less force would have been enough.
_SOON = 0.5
# Factor to try next if scales do not move at all.
_MUCH_MORE = 10.0
# Largest factor that is ever advised.
_MOST = 100.0

Speed = Literal["too early to tell", "too slow", "right", "too fast"]


@dataclass(frozen=True, kw_only=True)
class ScaleStats:
    """Statistics of the scales of the channels that may be pruned.

    Attributes:
        below_hundredth, below_thousandth: Shares of channels below 1e-2 and 1e-3.
        prunable: Share that can be pruned now: below 1e-2, and no layer loses all of its channels.
        limit: Share above which a layer would lose all of its channels.
        at_aim: Scale below which the wanted share of channels lies.
    """

    below_hundredth: float
    below_thousandth: float
    prunable: float
    limit: float
    at_aim: float

    @classmethod
    def of(cls, allocator: Allocator, *, aim: float) -> ScaleStats:
        """Measure the channels that an allocator may drop; `aim` is the share of them to prune."""
        values = allocator.importance[allocator.candidates]
        below, limit = float((values < NEAR_ZERO).mean()), allocator.limit.percent
        return cls(
            below_hundredth=below,
            below_thousandth=float((values < _ZERO).mean()),
            prunable=min(below, limit),
            limit=limit,
            at_aim=float(np.quantile(values, aim)),
        )

    def to_dict(self) -> dict[str, float]:
        """Return the statistics as plain data."""
        return asdict(self)

    def as_text(self) -> str:
        """Return one line for people."""
        return (
            f"{self.below_hundredth:.1%} of channels below 1e-2, {self.below_thousandth:.1%} below 1e-3, "
            f"prunable now {self.prunable:.1%} (a layer would be empty beyond {self.limit:.1%})"
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A judgement whether a sparsity training will have drawn enough channels to zero when it ends.

    Attributes:
        speed: Speed at which the channels at the aim approach zero.
        factor: Factor for the strength in the next run; 1 if it is right.
        reason: Observation behind the judgement, for people.
    """

    speed: Speed
    factor: float
    reason: str


def judge(at_aim: Sequence[float], force: Sequence[float], *, total_force: float, aim: float) -> Verdict:
    """Extrapolate the scale at the aim over the force that remains.

    The sum of learning rate times strength over the steps, here called force, draws a scale down. A scale is assumed
    to lose as much per unit of force in the rest of the run as it has lost so far.

    Args:
        at_aim: `ScaleStats.at_aim` before the first epoch and after each epoch.
        force: Force spent by then, from 0, in any unit.
        total_force: Force of the whole run, in the same unit.
        aim: Share of channels to prune, for the text.
    """
    spent = force[-1] / total_force if total_force > 0 else 1.0
    start, now = at_aim[0], at_aim[-1]
    if start < NEAR_ZERO:
        return Verdict(speed="right", factor=1.0, reason=f"{aim:.0%} of the channels were at zero from the start")
    reached = [used for scale, used in zip(at_aim, force, strict=True) if scale < NEAR_ZERO]
    if reached:
        share = max(reached[0] / total_force, 1e-3) if total_force > 0 else 1.0
        if share < _SOON:
            reason = f"{aim:.0%} of the channels were at zero after {share:.0%} of the force"
            return Verdict(speed="too fast", factor=share, reason=reason)
        return Verdict(speed="right", factor=1.0, reason=f"{aim:.0%} of the channels are at zero")
    if spent < _EARLY:
        return Verdict(speed="too early to tell", factor=1.0, reason=f"{spent:.0%} of the force is spent")
    lost = max(0.0, start - now) / spent  # of the scale, over the whole run
    end = max(0.0, start - lost)
    reason = f"the scale at {aim:.0%} went from {start:.3g} to {now:.3g} and will end near {end:.3g}"
    if end < NEAR_ZERO:
        return Verdict(speed="right", factor=1.0, reason=reason)
    factor = min(_MOST, start / lost) if lost > 0 else _MUCH_MORE
    return Verdict(speed="too slow", factor=factor, reason=reason)
