"""Where scales stand, and the verdict on a training, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.importance.criteria import bn_gamma
from pruning.selection.allocation import Allocator
from pruning.selection.scales import DENSE_SHARE, ScaleStats, Verdict, judge
from pruning.sparsity.monitor import Watched


def stats_of(first: list[float], second: list[float], *, aim: float = 0.5) -> ScaleStats:
    """Of two layers with these scales, before a third that stays."""
    model = nn.Sequential(
        nn.Conv2d(1, len(first), 1),
        nn.BatchNorm2d(len(first)),
        nn.Conv2d(len(first), len(second), 1),
        nn.BatchNorm2d(len(second)),
        nn.Conv2d(len(second), 1, 1),
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(first))
        model[3].weight.copy_(torch.tensor(second))
    graph = ChannelGraph.of(model, image_chw=(1, 8, 8))
    allocator = Allocator(graph=graph, importance=bn_gamma(model, graph), candidates=graph.prunable_ids)
    return ScaleStats.of(allocator, aim=aim)


def judged(at_aim: list[float], *, spent: float) -> Verdict:
    """The verdict on a history of equal epochs that took this share of the run's force, 1 in all."""
    return judge(at_aim, np.linspace(0, spent, len(at_aim)).tolist(), total_force=1.0, aim=0.5)


def test_shares_and_limit_of_two_layers() -> None:
    stats = stats_of([0.0005, -0.005, 0.5], [0.1, 0.2])
    assert stats.below_thousandth == pytest.approx(1 / 5)
    assert stats.below_hundredth == pytest.approx(2 / 5)
    # The second layer is empty above .2; three of five channels lie below that.
    assert stats.limit == pytest.approx(3 / 5)
    assert stats.prunable == pytest.approx(2 / 5)
    assert stats.at_aim == pytest.approx(0.1)
    assert stats.below_hundredth > DENSE_SHARE
    assert "40.0% of channels below 1e-2, 20.0% below 1e-3, prunable now 40.0%" in stats.as_text()


def test_layer_that_would_be_empty_bounds_what_is_prunable() -> None:
    stats = stats_of([0.001, 0.002, 0.003], [0.5, 0.6])
    assert stats.below_hundredth == pytest.approx(3 / 5)
    assert stats.prunable == stats.limit == pytest.approx(2 / 5)


def test_untrained_scales_are_dense() -> None:
    assert stats_of([1.0, 1.0], [1.0, 0.02]).below_hundredth == 0


def test_verdict_waits_for_a_share_of_the_force() -> None:
    verdict = judged([1.0, 0.99], spent=0.1)
    assert (verdict.speed, verdict.factor) == ("too early to tell", 1.0)


def test_scale_that_loses_too_little_asks_for_more_force() -> None:
    # Half of the force took .2 of 1, the whole will take .4: 2.5 times as much is needed.
    verdict = judged([1.0, 0.9, 0.8], spent=0.5)
    assert (verdict.speed, verdict.factor) == ("too slow", pytest.approx(2.5))
    assert "went from 1 to 0.8 and will end near 0.6" in verdict.reason


def test_scale_that_does_not_move_asks_for_ten_times_the_force() -> None:
    assert judged([1.0, 1.0], spent=0.5).factor == 10.0
    assert judged([1.0, 1.1], spent=0.5).factor == 10.0


def test_advice_is_bounded() -> None:
    assert judged([1.0, 0.9999], spent=0.5).factor == 100.0


def test_scale_on_its_way_to_zero_is_right() -> None:
    verdict = judged([1.0, 0.8, 0.45], spent=0.5)
    assert (verdict.speed, verdict.factor) == ("right", 1.0)


def test_scale_at_zero_near_the_end_is_right() -> None:
    assert judged([1.0, 0.5, 0.1, 0.005], spent=0.9).speed == "right"


def test_scale_at_zero_long_before_the_end_asks_for_less_force() -> None:
    # At zero after the first of five epochs.
    verdict = judged([1.0, 0.001, 0.001, 0.001, 0.001, 0.001], spent=1.0)
    assert (verdict.speed, verdict.factor) == ("too fast", pytest.approx(0.2))
    assert "50% of the channels were at zero after 20% of the force" in verdict.reason


def test_training_without_force_is_judged_at_once() -> None:
    assert judge([1.0, 1.0], [0.0, 0.0], total_force=0.0, aim=0.5).speed == "too slow"


@pytest.mark.parametrize(
    ("rate", "factor", "advised"),
    [
        (1.0, 10.0, {"scale-rate": 10.0, "sr": 0.001}),
        (1.0, 40.0, {"scale-rate": 20.0, "sr": 0.002}),
        (30.0, 2.0, {"scale-rate": 30.0, "sr": 0.002}),
        (20.0, 0.5, {"sr": 0.0005}),
        (None, 10.0, {"sr": 0.01}),
    ],
)
def test_advice_raises_the_rate_of_scales_before_the_strength(
    rate: float | None, factor: float, advised: dict[str, float]
) -> None:
    kind = Watched(criterion=bn_gamma, flag="sr", strength=0.001, rate=rate)
    assert kind.advised(factor) == pytest.approx(advised)
