"""Targets for the cost of a pruned network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pruning.choices import CostQuantity
from utils.errors import ConfigError

# Least share of its cost that a round leaves where rounds look for the largest cut within a drop of the score. What
# they find costs at most a quarter more than the best; smaller steps are nearer, and each is two more trainings.
STEP = 0.8

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
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
