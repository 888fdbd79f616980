"""Exponential moving average of the weights, built on torch's AveragedModel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from engine.training.recipe import averaged_steps

_RAMP = 2000  # updates


def ema_decay(updates: int, total: int, *, window: float | None = None) -> float:
    """Return the share of the old average that an update keeps.

    v5.0 keeps 0.9999 * (1 - exp(-n / 2000)). A run of a thousand updates would end before that averages anything, so
    in short runs ours ramps up within a tenth of the run and averages over its last 2 %.

    Args:
        updates: Optimiser steps so far.
        total: Optimiser steps of the whole run.
        window: Number of last steps to average over; by default that of `averaged_steps`.
    """
    ceiling = 1 - 1 / (averaged_steps(total) if window is None else window)
    ramp = min(_RAMP, max(1.0, total / 10))
    return ceiling * (1 - math.exp(-updates / ramp))


class Ema:
    """A moving average of a model's parameters and buffers, which generalises better than the model itself."""

    def __init__(self, model: nn.Module, *, total_updates: int, window: float | None = None) -> None:
        """Copy `model`.

        Args:
            model: Network to average.
            total_updates: Approximate number of optimiser steps of the whole run.
            window: Number of last steps to average over, at least 1; by default 2 % of them, at most 10,000.
        """

        @torch.no_grad()
        def blend(averages: Any, values: Any, updates: Tensor | int) -> None:
            weight = 1 - ema_decay(int(updates), total_updates, window=window)
            pairs = list(zip(averages, values, strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            if floats:
                torch._foreach_lerp_([average for average, _ in floats], [value for _, value in floats], weight)
            for average, value in pairs:
                if not average.is_floating_point():
                    average.copy_(value)

        self._averaged = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
        self._averaged.eval()
        self.model: nn.Module = self._averaged.module
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @property
    def updates(self) -> int:
        """Number of optimiser steps averaged so far."""
        return int(self._averaged.n_averaged)

    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`, after an optimiser step."""
        self._averaged.update_parameters(model)

    def restore_(self, weights: dict[str, Tensor], updates: int) -> None:
        """Load the averaged weights and the number of updates of a checkpoint."""
        self.model.load_state_dict(weights)
        self._averaged.n_averaged.fill_(updates)
