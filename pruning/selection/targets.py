"""Targets for the cost of a pruned network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pruning.choices import CostQuantity
from utils.errors import ConfigError

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Highest cost of the pruned network.

    Attributes:
        quantity: Quantity that is counted, "macs" or "params".
        amount: Multiply-adds or parameters, or a share of the network's present amount.
        is_share: Whether `amount` is a share.
    """

    quantity: CostQuantity
    amount: float
    is_share: bool

    def absolute(self, now: float) -> float:
        """Return the amount in multiply-adds or parameters for a network that costs `now`."""
        return self.amount * now if self.is_share else self.amount


def parse_target(text: str) -> Target:
    """Read `macs=2.1G`, `params=700K` or `macs=50%`.

    Raises:
        ConfigError: The text has another form.
    """
    quantity, _, amount = text.lower().partition("=")
    number, unit = amount.rstrip("kmg%"), amount[len(amount.rstrip("kmg%")) :]
    try:
        value = float(number) * (0.01 if unit == "%" else _UNITS[unit])
        is_valid = quantity in ("macs", "params") and math.isfinite(value) and value > 0
    except (ValueError, KeyError):
        is_valid = False
    if not is_valid:
        raise ConfigError(f"--target {text}: expected a form such as macs=2.1G, params=700K or macs=50%")
    return Target(quantity="macs" if quantity == "macs" else "params", amount=value, is_share=unit == "%")
