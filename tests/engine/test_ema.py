"""The moving average of the weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from engine.training.ema import Ema, ema_decay


def test_decay_of_a_long_run_is_that_of_v5() -> None:
    assert ema_decay(0, 10**6) == 0
    assert ema_decay(2000, 10**6) == pytest.approx(0.9999 * (1 - math.exp(-1)))
    assert ema_decay(10**6, 10**6) == pytest.approx(0.9999)


def test_short_run_averages_over_a_fiftieth_of_itself() -> None:
    # 1000 updates: the last 20, from the first tenth on.
    assert ema_decay(1000, 1000) == pytest.approx(0.95, abs=1e-4)
    assert ema_decay(100, 1000) == pytest.approx(0.95 * (1 - math.exp(-1)))


def test_average_follows_weights_and_buffers_by_the_decay() -> None:
    model = nn.BatchNorm2d(1)
    ema = Ema(model, total_updates=1000)
    ema.update(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
    assert model.running_mean is not None
    model.running_mean.fill_(1.0)
    ema.update(model)
    decay = ema_decay(1, 1000)
    assert ema.model.weight.item() == pytest.approx(decay * 1 + (1 - decay) * 3)  # type: ignore[operator,union-attr]
    assert ema.model.running_mean.item() == pytest.approx(1 - decay)  # type: ignore[operator,union-attr]
    assert ema.updates == 2


def test_restored_average_continues_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    ema, other = Ema(model, total_updates=1000), Ema(model, total_updates=1000)
    for _ in range(3):
        ema.update(model)
    other.restore_(ema.model.state_dict(), ema.updates)
    with torch.no_grad():
        model[0].weight += 1  # type: ignore[operator]
    ema.update(model)
    other.update(model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(ema.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    )
