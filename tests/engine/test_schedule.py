"""Learning rate, momentum and accumulation as functions of the batch number."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from engine.training.optim import OPTIMIZERS, build_optimizer, parameter_groups
from engine.training.schedule import SCHEDULES, Schedule
from utils.config.hyp import Hyp


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_starts_at_one_and_never_rises(name: str) -> None:
    values = [SCHEDULES[name](step / 100, 0.2) for step in range(101)]
    assert values[0] == pytest.approx(1.0)
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values))


@pytest.mark.parametrize(("name", "middle", "end"), [("cosine", 0.6, 0.2), ("linear", 0.6, 0.2), ("flat", 1.0, 0.2)])
def test_schedule_reaches_the_final_factor(name: str, middle: float, end: float) -> None:
    assert SCHEDULES[name](0.5, 0.2) == pytest.approx(middle)
    assert SCHEDULES[name](1.0, 0.2) == pytest.approx(end)


def test_multistep_falls_to_a_tenth_at_its_milestones() -> None:
    assert [SCHEDULES["multistep"](at, 0.01) for at in (0.59, 0.6, 0.85)] == pytest.approx([1.0, 0.1, 0.01])


def test_warm_up_lasts_a_thousand_batches_but_at_most_a_tenth_of_the_run() -> None:
    long = Schedule(name="cosine", hyp=Hyp(), epochs=300, batches=1000, accumulate=4)
    short = Schedule(name="cosine", hyp=Hyp(), epochs=50, batches=13, accumulate=4)
    assert (long.warmup_batches, short.warmup_batches) == (3000, 65)


def test_warm_up_raises_weights_and_lowers_biases() -> None:
    schedule = Schedule(name="linear", hyp=Hyp(lrf=1.0), epochs=100, batches=10, accumulate=4)
    optimizer = build_optimizer("sgd", small_model(), lr=0.01, momentum=0.937, weight_decay=0.0)
    schedule.apply_(optimizer, 50)  # half of the 100 batches of warm-up
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"norm": 0.005, "weight": 0.005, "bias": 0.055})
    assert optimizer.param_groups[0]["momentum"] == pytest.approx((0.8 + 0.937) / 2)
    assert [schedule.accumulation(batch) for batch in (0, 50, 100)] == [1, 2, 4]


def test_only_convolution_weights_are_decayed() -> None:
    groups = {group["name"]: group for group in parameter_groups(small_model(), weight_decay=0.1)}
    assert [tuple(p.shape) for p in groups["weight"]["params"]] == [(4, 3, 1, 1)]
    assert (len(groups["norm"]["params"]), len(groups["bias"]["params"])) == (1, 2)
    assert (groups["weight"]["weight_decay"], groups["norm"]["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_learns_a_line(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1))
    optimizer = build_optimizer(name, model, lr=0.02, momentum=0.9, weight_decay=0.0)  # type: ignore[arg-type]
    x = torch.linspace(-1, 1, 32).view(32, 1, 1, 1)
    losses = []
    for _ in range(200):
        loss = (model(x) - 2 * x - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_ranger_returns_half_way_to_its_slow_weights_every_six_steps() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = OPTIMIZERS["ranger"]([{"params": [weight]}], 0.1, 0.9)
    seen = []
    for _ in range(6):
        weight.grad = torch.ones(1)
        before = weight.item()
        optimizer.step()
        seen.append(weight.item() - before)
    # The first step starts from 0; at the sixth the fast weights fall back to half of where they were.
    assert seen[-1] > 0
    assert weight.item() == pytest.approx(optimizer.state[weight]["slow"].item())
