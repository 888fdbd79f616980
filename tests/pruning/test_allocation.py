"""Which channels go: thresholds, least widths, rounding and cost targets, by hand and on random networks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import Program, RandomNetwork, programs
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.importance.cost import ChannelCost
from pruning.importance.criteria import num_ids, random_order
from pruning.selection.allocation import Allocator, ranked_ids
from pruning.selection.rounding import Rounding
from utils.errors import ConfigError, PruningError

IMAGE = (1, 8, 8)


def chain(*widths: int) -> nn.Sequential:
    """1x1 convolutions of these widths without biases, and a last one of one channel."""
    sizes = [1, *widths, 1]
    return nn.Sequential(*(nn.Conv2d(a, b, 1, bias=False) for a, b in pairwise(sizes)))


def allocator_of(model: nn.Module, scores: Sequence[Sequence[float]], **settings: Any) -> Allocator:
    """With these scores for the channels of a chain's layers."""
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    importance = np.full(num_ids(graph), np.nan)
    for index, values in enumerate(scores):
        importance[graph.layers[str(index)].output_ids] = values
    return Allocator(graph=graph, importance=importance, candidates=graph.prunable_ids, **settings)


def kept(allocator: Allocator, dropped: IntArray) -> list[list[int]]:
    """Positions that stay in each layer of a chain but the last."""
    layers = list(allocator.graph.layers.values())[:-1]
    return [np.flatnonzero(~np.isin(layer.output_ids, dropped)).tolist() for layer in layers]


TWO = [[0.1, 0.4, 0.2, 0.3], [0.9, 0.6, 0.8, 0.7]]


def test_channels_below_the_threshold_go() -> None:
    allocator = allocator_of(chain(4, 4), TWO)
    allocation = allocator.at(0.3)
    assert kept(allocator, allocation.dropped) == [[1, 3], [0, 1, 2, 3]]
    assert (allocation.threshold, allocation.raised) == (0.3, ())


@pytest.mark.parametrize(
    ("percent", "threshold", "count"), [(0.0, 0.1, 0), (0.25, 0.3, 2), (0.3, 0.3, 2), (0.5, 0.6, 4)]
)
def test_threshold_is_the_value_at_the_percent(percent: float, threshold: float, count: int) -> None:
    allocator = allocator_of(chain(4, 4), TWO)
    assert allocator.threshold_at(percent) == threshold
    assert sum(score < threshold for scores in TWO for score in scores) == count


@pytest.mark.parametrize("percent", [1.0, -0.1, float("nan")])
def test_percent_that_is_no_share_is_refused(percent: float) -> None:
    with pytest.raises(ConfigError, match=r"expected a share from 0 up to, not including, 1"):
        allocator_of(chain(4, 4), TWO).threshold_at(percent)


def test_limit_is_the_least_of_the_layers_largest_scores() -> None:
    limit = allocator_of(chain(4, 4), TWO).limit
    assert (limit.threshold, limit.percent) == (0.4, 3 / 8)
    at_limit = allocator_of(chain(4, 4), TWO).at(limit.threshold)
    assert at_limit.raised == ()


def test_layer_below_the_threshold_keeps_its_best_channel_and_is_named() -> None:
    allocator = allocator_of(chain(4, 4), TWO)
    allocation = allocator.at(0.65)
    assert kept(allocator, allocation.dropped) == [[1], [0, 2, 3]]
    assert allocation.raised == ("0",)


def test_least_number_of_channels_stays() -> None:
    allocator = allocator_of(chain(4, 4), TWO, min_channels=3)
    allocation = allocator.at(float("inf"))
    assert kept(allocator, allocation.dropped) == [[1, 2, 3], [0, 2, 3]]
    assert allocation.raised == ("0", "1")


def test_least_number_beyond_a_layers_width_keeps_it_whole() -> None:
    allocator = allocator_of(chain(4, 4), TWO, min_channels=9)
    allocation = allocator.at(float("inf"))
    assert len(allocation.dropped) == 0


def test_widths_are_rounded_by_dropping_more_or_bringing_back_the_best() -> None:
    scores = [[0.1, 0.2, 0.3, 0.9], [0.9, 0.1, 0.8, 0.7]]
    up = allocator_of(chain(4, 4), scores, rounding=Rounding(unit=0, direction="up"))
    # The threshold keeps 1 and 3 channels: rounded up 1 and 4.
    assert kept(up, up.at(0.5).dropped) == [[3], [0, 1, 2, 3]]
    down = allocator_of(chain(4, 4), scores, rounding=Rounding(unit=2, direction="down"))
    assert kept(down, down.at(0.5).dropped) == [[2, 3], [0, 2]]


def test_joined_layers_keep_the_same_channels() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            result: torch.Tensor = self.last(y + self.second(y))
            return result

    graph = ChannelGraph.of(Joined(), image_chw=IMAGE)
    importance = np.full(num_ids(graph), np.nan)
    importance[graph.layers["first"].output_ids] = [0.1, 0.2, 0.3, 0.4]
    allocator = Allocator(graph=graph, importance=importance, candidates=graph.prunable_ids)
    dropped = allocator.at(0.25).dropped
    assert np.isin(graph.layers["second"].output_ids, dropped).tolist() == [True, True, False, False]


def test_target_drops_the_fewest_channels_that_reach_it() -> None:
    # k and n channels cost k + kn + n weights: 24 as it is, 19 without the worst, 14 without the two worst.
    model = chain(4, 4)
    allocator = allocator_of(model, TWO)
    cost = ChannelCost.of(model, allocator.graph, IMAGE)
    allocation = allocator.at_cost(cost.parameters, 15, what="parameters")
    assert kept(allocator, allocation.dropped) == [[1, 3], [0, 1, 2, 3]]
    assert cost.parameters(allocation.dropped) == 14
    assert len(allocator.at_cost(cost.parameters, 24, what="parameters").dropped) == 0
    assert kept(allocator, allocator.at_cost(cost.parameters, 3, what="parameters").dropped) == [[1], [0]]


def test_target_below_one_channel_per_layer_names_the_nearest() -> None:
    model = chain(4, 4)
    allocator = allocator_of(model, TWO)
    cost = ChannelCost.of(model, allocator.graph, IMAGE)
    with pytest.raises(PruningError, match="target of 2 parameters cannot be reached .* the nearest is 3; lower"):
        allocator.at_cost(cost.parameters, 2, what="parameters")


def test_rounding_that_contradicts_the_target_names_the_nearest() -> None:
    model = chain(4, 4)
    allocator = allocator_of(model, TWO, min_channels=2, rounding=Rounding(unit=0))
    cost = ChannelCost.of(model, allocator.graph, IMAGE)
    with pytest.raises(PruningError, match="the nearest is 8; lower --min-channels or --round"):
        allocator.at_cost(cost.parameters, 7, what="parameters")


def test_equal_scores_do_not_keep_a_target_from_being_reached() -> None:
    model = chain(4, 4)
    allocator = allocator_of(model, [[1.0] * 4, [1.0] * 4])
    cost = ChannelCost.of(model, allocator.graph, IMAGE)
    found = cost.parameters(allocator.at_cost(cost.parameters, 15, what="parameters").dropped)
    assert found == 14


def test_rounding_wider_than_every_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="--round 8 exceeds every width: the widest .* has 4"):
        allocator_of(chain(4, 4), TWO, rounding=Rounding(unit=8))


def test_network_without_candidates_is_refused() -> None:
    graph = ChannelGraph.of(chain(4), image_chw=IMAGE)
    with pytest.raises(PruningError, match="no channel of this network can be pruned"):
        Allocator(graph=graph, importance=np.zeros(num_ids(graph)), candidates=np.empty(0, dtype=np.int64))


def test_channels_without_a_score_are_no_candidates() -> None:
    importance: FloatArray = np.array([0.1, np.nan, 0.3])
    assert ranked_ids(np.array([0, 1]), importance).tolist() == [0]


@given(programs, st.floats(0, 1.1), st.integers(0, 99), st.sampled_from([0, 1, 2]), st.integers(1, 3))
@settings(max_examples=40)
def test_every_layer_of_any_network_keeps_a_channel_at_any_threshold(
    program: Program, threshold: float, seed: int, unit: int, min_channels: int
) -> None:
    model = RandomNetwork(program, cells=1)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    allocator = Allocator(
        graph=graph,
        importance=random_order(model, graph, seed=seed),
        candidates=graph.prunable_ids,
        rounding=Rounding(unit=unit),
        min_channels=min_channels,
    )
    dropped = allocator.at(threshold).dropped
    assert np.isin(dropped, graph.prunable_ids).all()
    for layer in graph.layers.values():
        assert not np.isin(layer.output_ids, dropped).all()
        assert not np.isin(layer.input_ids, dropped).all()


@given(programs, st.integers(0, 99), st.floats(0.2, 1))
@settings(max_examples=25)
def test_cost_target_is_reached_wherever_it_can_be(program: Program, seed: int, share: float) -> None:
    model = RandomNetwork(program, cells=1)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    cost = ChannelCost.of(model, graph, (3, 8, 8))
    allocator = Allocator(
        graph=graph, importance=random_order(model, graph, seed=seed), candidates=graph.prunable_ids
    )
    smallest, now = cost.macs(allocator.at(float("inf")).dropped), cost.macs()
    target = smallest + share * (now - smallest)
    allocation = allocator.at_cost(cost.macs, target, what="MACs")
    assert cost.macs(allocation.dropped) <= target
    # One candidate more would have been too much.
    scores = np.sort(allocator.importance[allocator.candidates])
    fewer = scores[scores < allocation.threshold]
    assert not len(fewer) or cost.macs(allocator.at(fewer[-1]).dropped) > target


def test_both_halves_of_a_split_keep_a_channel() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 4, 1)
            self.left, self.right = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.split(self.first(x), [2, 2], 1)
            return self.left(left) + self.right(right)

    graph = ChannelGraph.of(Halves(), image_chw=(1, 4, 4))
    ids = graph.layers["first"].output_ids
    importance = np.full(int(max(graph.layers["left"].output_ids.max(), ids.max())) + 1, np.nan)
    importance[ids] = [1.0, 2.0, 8.0, 9.0]
    allocation = Allocator(graph=graph, importance=importance, candidates=ids).at(8.5)
    assert sorted(allocation.dropped.tolist()) == sorted([ids[0], ids[2]])


def test_least_share_of_a_layer_stays() -> None:
    allocator = allocator_of(chain(4, 4), TWO, min_share=0.6)
    assert kept(allocator, allocator.smallest.dropped) == [[1, 2, 3], [0, 2, 3]]
    assert allocator.at(0.35).raised == ()


def test_uniform_share_is_the_widest_at_which_all_layers_cut_alike_meet_the_target() -> None:
    model = chain(8, 8)
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    cost = ChannelCost.of(model, graph, IMAGE)
    allocator = allocator_of(model, [np.arange(8), np.arange(8)])
    # With n of 8 channels in each layer there are n + n x n + n weights.
    share = allocator.uniform_share(cost.parameters, 24.0)
    assert share == pytest.approx(4 / 8, abs=1e-3)
    assert cost.parameters(allocator_of(model, [np.arange(8)] * 2, min_share=share).smallest.dropped) == 24
    assert allocator.uniform_share(cost.parameters, 80.0) == pytest.approx(1.0, abs=1e-3)
    assert allocator.uniform_share(cost.parameters, 2.0) == 0.0
