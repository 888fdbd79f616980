"""Learning rate, momentum and accumulation as plain functions of progress: a resumed run needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer

from engine.optim import set_momentum_
from utils.hyp import Hyp

ScheduleName = Literal["cosine", "linear", "multistep", "flat"]

# Multi-step: a tenth at 60 % and again at 85 % of the run, unless a run says otherwise.
MILESTONES = (0.6, 0.85)
# Flat, then anneal: the rate stays for this share of the run, then follows a cosine.
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
    """What the optimiser is set to at each batch.

    v5.0 warms up over max(warmup_epochs, 1000 batches). On a few hundred pictures 1000 batches are most of the run,
    so ours is also at most a tenth of it.

    Attributes:
        name: Shape of the decay from 1 to `hyp.lrf`.
        hyp: Rates, momenta and the length of the warm-up.
        epochs: Length of the run.
        batches: Batches per epoch.
        accumulate: Batches per optimiser step after the warm-up.
        least_warmup: Batches that a warm-up lasts at least, short runs aside.
        milestones: Shares of the run after which "multistep" falls to a tenth.
    """

    name: ScheduleName
    hyp: Hyp
    epochs: int
    batches: int
    accumulate: int
    least_warmup: int = 1000
    milestones: tuple[float, ...] = MILESTONES

    @property
    def warmup_batches(self) -> int:
        """Batches over which rates and momentum rise."""
        if self.hyp.warmup_epochs <= 0:
            return 0
        wanted = max(round(self.hyp.warmup_epochs * self.batches), self.least_warmup)
        return min(wanted, max(1, self.epochs * self.batches // 10))

    @property
    def total_updates(self) -> int:
        """Optimiser steps of the whole run, but for the warm-up's extra ones."""
        return self.epochs * math.ceil(self.batches / self.accumulate)

    def warmup_progress(self, batch: int) -> float:
        """Share of the warm-up that is over at `batch` (counted from the start of the run), 0 to 1."""
        return 1.0 if batch >= self.warmup_batches else batch / self.warmup_batches

    def accumulation(self, batch: int) -> int:
        """Batches per optimiser step: 1 at the start of the warm-up, `accumulate` after it."""
        return max(1, round(1 + (self.accumulate - 1) * self.warmup_progress(batch)))

    def factor(self, batch: int) -> float:
        """Share of the first learning rate that the decay leaves at `batch`."""
        progress = min(1.0, batch / (self.epochs * self.batches))
        if self.name == "multistep":
            return _multistep(progress, self.hyp.lrf, self.milestones)
        return SCHEDULES[self.name](progress, self.hyp.lrf)

    def apply_(self, optimizer: Optimizer, batch: int) -> None:
        """Set learning rates and momenta of all groups for `batch`."""
        done = self.warmup_progress(batch)
        target = self.hyp.lr0 * self.factor(batch)
        momentum = self.hyp.warmup_momentum + (self.hyp.momentum - self.hyp.warmup_momentum) * done
        for group in optimizer.param_groups:
            start = self.hyp.warmup_bias_lr if group.get("name") == "bias" else 0.0
            group["lr"] = start + (target - start) * done
            if self.warmup_batches:
                set_momentum_(group, momentum)
