"""How near to zero channels are, and what that says of a sparsity training or a cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from pruning.allocation import Allocator

# A channel of less scale than this hardly changes anything.
NEAR_ZERO = 1e-2
_ZERO = 1e-3
# Below this share of channels near zero, a network was not trained sparse.
DENSE_SHARE = 0.01

# Before this share of the force is spent, the speed cannot be judged.
_EARLY = 0.15
# Reached before this share of the force is spent, less force would have done.
_SOON = 0.5
# When it does not move at all, this much more force is the next thing to try.
_MUCH_MORE = 10.0
# Advice never goes further than this at once.
_MOST = 100.0

Speed = Literal["too early to tell", "too slow", "right", "too fast"]


@dataclass(frozen=True, kw_only=True)
class ScaleStats:
    """Where the scales of the channels that may be pruned stand.

    Attributes:
        below_hundredth, below_thousandth: Shares of channels under 1e-2 and 1e-3.
        prunable: Share that can go now: under 1e-2, and no layer loses all of its channels.
        limit: Share at which some layer would lose all.
        at_aim: The scale under which the wanted share of channels lies.
    """

    below_hundredth: float
    below_thousandth: float
    prunable: float
    limit: float
    at_aim: float

    @classmethod
    def of(cls, allocator: Allocator, *, aim: float) -> ScaleStats:
        """Of the channels an allocator may drop; `aim` is the share of them to be cut."""
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
        """Plain numbers."""
        return asdict(self)

    def as_text(self) -> str:
        """One line."""
        return (
            f"{self.below_hundredth:.1%} of channels below 1e-2, {self.below_thousandth:.1%} below 1e-3, "
            f"prunable now {self.prunable:.1%} (a layer would be empty beyond {self.limit:.1%})"
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a sparsity training will have drawn enough channels to zero when it ends.

    Attributes:
        speed: Of the channels at the aim, on their way to zero.
        factor: By which to multiply the strength in the next run; 1 where it is right.
        reason: What was seen, for people.
    """

    speed: Speed
    factor: float
    reason: str


def judge(at_aim: Sequence[float], force: Sequence[float], *, total_force: float, aim: float) -> Verdict:
    """Extrapolate the way to zero over the force that is still to come.

    What draws a scale down is the sum of learning rate times strength over the steps, here "force"; a scale
    has so far lost a part of itself per unit of it, and is taken to go on like that.

    Args:
        at_aim: `ScaleStats.at_aim` before the first epoch and after each one.
        force: Spent by then, from 0, in any unit.
        total_force: Of the whole run, in the same unit.
        aim: Share of channels to be cut, for the text.
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
