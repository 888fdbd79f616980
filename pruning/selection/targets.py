"""Targets for the cost of a pruned network, and whether it meets them when its time is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pruning.choices import CostQuantity
from utils.errors import ConfigError

# Least share of its cost that a round leaves where rounds look for the largest cut within a drop of the score. What
# they find costs at most a quarter more than the best; smaller steps are nearer, and each is two more trainings.
STEP = 0.8

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
# Share by which a measured time may be longer than its target.
TARGET_TOLERANCE = 0.05
_QUANTITIES: dict[str, CostQuantity] = {"macs": "macs", "params": "params", "ms": "ms", "speedup": "ms"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Highest cost of the pruned network.

    Attributes:
        quantity: Quantity that is limited, "macs", "params" or "ms".
        amount: Multiply-adds, parameters or milliseconds, or a share of the network's present amount.
        is_share: Whether `amount` is a share.
    """

    quantity: CostQuantity
    amount: float
    is_share: bool

    def absolute(self, now: float) -> float:
        """Return the amount in multiply-adds, parameters or milliseconds for a network that costs `now`."""
        return self.amount * now if self.is_share else self.amount


def absolute_text(quantity: CostQuantity, amount: float) -> str:
    """Write an amount of multiply-adds, parameters or milliseconds in the form that `parse_target` reads."""
    return f"ms={amount:.6g}" if quantity == "ms" else f"{quantity}={amount:.0f}"


def steps_towards(share: float) -> int:
    """Return the fewest equal steps to a share (0, 1] of the present cost of which none leaves less than `STEP`."""
    # What the text of a target rounded off is no further step.
    return max(1, math.ceil(round(math.log(share) / math.log(STEP), 3)))


def parse_target(text: str) -> Target:
    """Read `macs=2.1G`, `params=700K`, `macs=50%`, `ms=8`, `ms=50%` or `speedup=3`.

    Raises:
        ConfigError: The text has another form.
    """
    name, _, amount = text.lower().partition("=")
    number, unit = amount.rstrip("kmg%"), amount[len(amount.rstrip("kmg%")) :]
    quantity = _QUANTITIES.get(name)
    try:
        value = float(number) * (0.01 if unit == "%" else _UNITS[unit])
        is_valid = quantity is not None and math.isfinite(value) and value > 0
    except (ValueError, KeyError):
        is_valid = False
    is_time = quantity == "ms"
    # Milliseconds have no K, M or G, and a speedup is a factor above 1.
    is_valid &= not is_time or unit in ("", "%")
    is_valid &= name != "speedup" or (unit == "" and value > 1)
    if not is_valid or quantity is None:
        raise ConfigError(
            f"--target {text}: expected a form such as macs=2.1G, params=700K or macs=50%, ms=8 or speedup=3"
        )
    if name == "speedup":
        return Target(quantity=quantity, amount=1 / value, is_share=True)
    return Target(quantity=quantity, amount=value, is_share=unit == "%")


@dataclass(frozen=True, kw_only=True)
class NetworkTimes:
    """Milliseconds of a pruned network and of the one before any cut, both predicted or both measured.

    Attributes:
        now: Time of the pruned network.
        before: Time of the other one; None if it is not known.
    """

    now: float
    before: float | None = None


@dataclass(frozen=True, kw_only=True)
class TargetCheck:
    """Whether a network is as fast, measured, as its target in milliseconds or as a speedup asks.

    Attributes:
        target: The target as it was given.
        predicted: Times by which the cut was planned.
        measured: Times of the exported networks; `before` is there for a target that is a share of it.
        precision: Precision that both networks compute in.
    """

    target: str
    predicted: NetworkTimes
    measured: NetworkTimes
    precision: str

    @property
    def wanted(self) -> float:
        """Milliseconds, or how many times as fast as before."""
        target = parse_target(self.target)
        return 1 / target.amount if target.is_share else target.amount

    def amount(self, times: NetworkTimes) -> float | None:
        """Return what times amount to, in the unit of `wanted`."""
        if not parse_target(self.target).is_share:
            return times.now
        return None if times.before is None else times.before / times.now

    @property
    def is_met(self) -> bool:
        """Whether the measured network is as fast as wanted, or at most `TARGET_TOLERANCE` slower."""
        return self._slower <= 1 + TARGET_TOLERANCE

    @property
    def _slower(self) -> float:
        """Measured time as a multiple of the wanted one."""
        found = self.amount(self.measured)
        assert found is not None
        return self.wanted / found if parse_target(self.target).is_share else found / self.wanted

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for result.json."""
        predicted, measured = self.amount(self.predicted), self.amount(self.measured)
        numbers = {"wanted": self.wanted, "predicted": predicted, "measured": measured}
        return {"target": self.target, **numbers, "is_met": self.is_met, "text": self.as_text()}

    def as_text(self) -> str:
        """Return a line with both times; where the target is not met, also why and what to do."""
        predicted, measured = self.amount(self.predicted), self.amount(self.measured)
        if parse_target(self.target).is_share:
            foretold = "" if predicted is None else f", {predicted:.2f} times predicted"
            told = f"{measured:.2f} times as fast as the dense network in {self.precision}, measured{foretold}"
        else:
            told = f"{measured:.2f} ms measured, {predicted:.2f} ms predicted"
        if self.is_met:
            return f"target {self.target} is met within {TARGET_TOLERANCE:.0%}: {told}"
        return f"target {self.target} is NOT met: {told}{self._reason}; run again with --target {self._harder}"

    @property
    def _reason(self) -> str:
        """Say that the machine has become slower, where that is so."""
        before, now = self.predicted.before, self.measured.before
        if (
            parse_target(self.target).is_share
            or before is None
            or now is None
            or now <= before * (1 + TARGET_TOLERANCE)
        ):
            return ""
        slower = f"{now / before:.2f} times its predicted time"
        return f"; the dense network takes {slower}, too: the machine was faster when its latency table was timed"

    @property
    def _harder(self) -> str:
        """The target that would have led here, had it been given: the wanted one, moved by what prediction missed."""
        predicted, measured = self.amount(self.predicted), self.amount(self.measured)
        assert measured is not None
        # Without a prediction the cut reached just what was wanted.
        amount = self.wanted * (predicted or self.wanted) / measured
        return f"speedup={amount:.3g}" if parse_target(self.target).is_share else f"ms={amount:.3g}"
