"""Exponential moving average of the weights, on torch's AveragedModel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

_DECAY = 0.9999
_RAMP = 2000  # updates


def ema_decay(updates: int) -> float:
    """Share of the old average kept at the given number of updates: .9999 * (1 - exp(-n / 2000))."""
    return _DECAY * (1 - math.exp(-updates / _RAMP))


@torch.no_grad()
def _blend(averages: Any, values: Any, updates: Tensor | int) -> None:
    weight = 1 - ema_decay(int(updates))
    floats = [(a, v) for a, v in zip(averages, values, strict=True) if a.is_floating_point()]
    if floats:
        torch._foreach_lerp_([a for a, _ in floats], [v for _, v in floats], weight)
    for average, value in zip(averages, values, strict=True):
        if not average.is_floating_point():
            average.copy_(value)


class Ema:
    """A shadow of a model, parameters and buffers, that lags behind it and generalises better."""

    def __init__(self, model: nn.Module) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=_blend, use_buffers=True)
        self._averaged.eval()
        self.model: nn.Module = self._averaged.module
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @property
    def updates(self) -> int:
        """Optimiser steps seen so far."""
        return int(self._averaged.n_averaged)

    def update(self, model: nn.Module) -> None:
        """Move the shadow towards `model`, after an optimiser step."""
        self._averaged.update_parameters(model)

    def restore_(self, weights: dict[str, Tensor], updates: int) -> None:
        """Continue from a checkpoint."""
        self.model.load_state_dict(weights)
        self._averaged.n_averaged.fill_(updates)
