"""Learning rate, momentum and accumulation as plain functions of progress, so a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer

from engine.choices import ScheduleName
from engine.training.optim import set_momentum_
from engine.training.recipe import warmup_batches
from utils.config.hyp import Hyp

# "multistep": the rate falls to a tenth at 60 % of the run and again at 85 %, unless a run sets other milestones.
MILESTONES = (0.6, 0.85)
# "flat": the rate is constant for this share of the run, then follows a cosine.
_FLAT_SHARE = 0.7


def _cosine(progress: float, final: float) -> float:
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def _linear(progress: float, final: float) -> float:
    return 1 - (1 - final) * progress


def _multistep(progress: float, final: float, milestones: tuple[float, ...] = MILESTONES) -> float:
    return max(final**2, 0.1 ** sum(progress >= milestone for milestone in milestones))


def _flat(progress: float, final: float) -> float:
    return _cosine(max(0.0, progress - _FLAT_SHARE) / (1 - _FLAT_SHARE), final)


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "multistep": _multistep,
    "flat": _flat,
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rates and momenta of the optimiser at each batch.

    Attributes:
        name: Shape of the decay from 1 to `hyp.lrf`.
        hyp: Rates, momenta and length of the warm-up.
        epochs: Epochs of the run.
        batches: Batches per epoch.
        accumulate: Batches per optimiser step after the warm-up.
        least_warmup: Minimum length of a warm-up in batches, except in short runs, see `warmup_batches`.
        is_warmup_exact: Whether `hyp.warmup_epochs` were asked for, and no minimum or maximum counts.
        milestones: Shares of the run, 0 to 1, at which "multistep" divides the rate by ten.
    """

    name: ScheduleName
    hyp: Hyp
    epochs: int
    batches: int
    accumulate: int
    least_warmup: int = 1000
    is_warmup_exact: bool = False
    milestones: tuple[float, ...] = MILESTONES

    @classmethod
    def constant(cls, lr: float, *, batches: int) -> Schedule:
        """Build the schedule of a run at one rate, without a warm-up, whose optimiser keeps its momentum."""
        hyp = Hyp(lr0=lr, lrf=1.0, warmup_epochs=0.0)
        return cls(name="linear", hyp=hyp, epochs=1, batches=batches, accumulate=1)

    @property
    def warmup_batches(self) -> int:
        """Number of batches over which rates and momentum rise."""
        return warmup_batches(
            self.hyp.warmup_epochs,
            epochs=self.epochs,
            batches=self.batches,
            least=self.least_warmup,
            is_exact=self.is_warmup_exact,
        )

    @property
    def total_updates(self) -> int:
        """Number of optimiser steps of the whole run, without the warm-up's extra ones."""
        return self.epochs * math.ceil(self.batches / self.accumulate)

    def warmup_progress(self, batch: int) -> float:
        """Return the completed share of the warm-up, 0 to 1, at `batch` (counted from the start of the run)."""
        return 1.0 if batch >= self.warmup_batches else batch / self.warmup_batches

    def accumulation(self, batch: int) -> int:
        """Return the batches per optimiser step: 1 at the start of the warm-up, `accumulate` after it."""
        return max(1, round(1 + (self.accumulate - 1) * self.warmup_progress(batch)))

    def factor(self, batch: int) -> float:
        """Return the factor, at most 1, by which the decay multiplies the initial learning rate at `batch`."""
        progress = min(1.0, batch / (self.epochs * self.batches))
        if self.name == "multistep":
            return _multistep(progress, self.hyp.lrf, self.milestones)
        return SCHEDULES[self.name](progress, self.hyp.lrf)

    def apply_(self, optimizer: Optimizer, batch: int) -> None:
        """Set the learning rates and momenta of all parameter groups for `batch`."""
        done = self.warmup_progress(batch)
        target = self.hyp.lr0 * self.factor(batch)
        momentum = self.hyp.warmup_momentum + (self.hyp.momentum - self.hyp.warmup_momentum) * done
        for group in optimizer.param_groups:
            start = self.hyp.warmup_bias_lr if group.get("name") == "bias" else 0.0
            group["lr"] = start + (target - start) * done
            if self.warmup_batches:
                set_momentum_(group, momentum)
