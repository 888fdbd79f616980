"""Widths that runtimes like: powers of two, or multiples of a number.

On ncnn a network of first width 15 takes 58 % longer than one of 16, since vectors are filled badly
(SPEC 5); fewer channels are faster only where they are also aligned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from utils.errors import ConfigError

Direction = Literal["up", "down", "nearest"]


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """To which widths channel counts are rounded.

    Attributes:
        unit: Widths are multiples of it; 0 for powers of two.
        direction: "nearest" takes the larger one of two that are equally near.
    """

    unit: int = 1
    direction: Direction = "nearest"

    @classmethod
    def parse(cls, text: str, *, direction: Direction = "nearest") -> Rounding:
        """Read "pow2", "none" or a number.

        Raises:
            ConfigError: It is none of these.
        """
        if text in ("pow2", "none"):
            return cls(unit=0 if text == "pow2" else 1, direction=direction)
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise ConfigError(f"--round {text}: expected pow2, none or a number such as 8")
        return cls(unit=int(text), direction=direction)

    def widths(self, total: int) -> tuple[int, ...]:
        """Allowed widths of a layer that has `total` channels now, growing; `total` where it has too few."""
        if self.unit:
            return tuple(range(self.unit, total + 1, self.unit)) or (total,)
        return tuple(1 << exponent for exponent in range(total.bit_length()))

    def apply(self, kept: int, *, total: int, least: int = 1) -> int:
        """The width for a layer that would keep `kept` of `total` channels.

        Never more than `total`: rounded up beyond its largest allowed width, a layer stays as it is.

        Args:
            kept: Channels that importance alone would keep, 0 to `total`.
            total: Channels now.
            least: The fewest to keep; a layer that has no more stays whole.
        """
        if kept >= total or least >= total:
            return total
        allowed = [width for width in self.widths(total) if width >= least] or [total]
        below = [width for width in allowed if width <= kept]
        above = [width for width in [*allowed, total] if width >= kept]
        if not below or self.direction == "up":
            return above[0]
        if self.direction == "down":
            return below[-1]
        return above[0] if above[0] - kept <= kept - below[-1] else below[-1]
