"""Settings of RePr; imports no torch, so that command lines answer at once."""

from __future__ import annotations

from dataclasses import dataclass

from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ReprSettings:
    """When filters are dropped, and how many.

    Attributes:
        s1: Epochs per cycle in which all filters train.
        s2: Epochs per cycle, after those, in which the dropped filters are off.
        cycles: Number of cycles; the rest of the run trains all filters.
        ratio: Share of the droppable filters to drop, in (0, 1).
    """

    s1: int = 20
    s2: int = 10
    cycles: int = 3
    ratio: float = 0.3

    def __post_init__(self) -> None:
        for name in ("s1", "s2", "cycles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"RePr {name} is {getattr(self, name)}: expected at least 1")
        if not 0 < self.ratio < 1:
            raise ConfigError(f"RePr ratio is {self.ratio}: expected a share between 0 and 1, such as 0.3")

    @property
    def last_epoch(self) -> int:
        """First epoch (from 0) after all cycles."""
        return self.cycles * (self.s1 + self.s2)

    def is_off(self, epoch: int) -> bool:
        """Return whether filters are off in an epoch (from 0)."""
        return epoch < self.last_epoch and epoch % (self.s1 + self.s2) >= self.s1

    def check_fits(self, epochs: int) -> None:
        """Check that a run does not end before the filters that came back last have trained.

        Raises:
            ConfigError: The run is too short.
        """
        if epochs <= self.last_epoch:
            raise ConfigError(
                f"RePr with {self.cycles} cycles of {self.s1} + {self.s2} epochs does not fit a run of {epochs}: "
                f"filters would end off or untrained; train for at least {self.last_epoch + 1} epochs or lower cycles"
            )
