"""Predicted milliseconds: by hand, against the cut network, and the choice of channels and widths by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cut_oracle import cuttable_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from latency_tables import invented_table
from random_networks import Program, RandomNetwork, programs
from tiny import TINY_CFG
from torch import nn

from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.importance.criteria import num_ids
from pruning.selection.allocation import Allocator
from pruning.selection.costs import Costs
from pruning.selection.latency import Conditions, LatencyTable, LayerKind, LayerTimes
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.latency_layers import timed_layers
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.selection.targets import parse_target
from pruning.surgery.cut import cut
from utils.errors import PruningError

IMAGE = (3, 8, 8)
FIRST = LayerKind(kind="conv", kernel=(3, 3), padding=(1, 1), activation="relu", input_hw=(8, 8), end="first")
SECOND = LayerKind(kind="conv", stride=(2, 2), input_hw=(8, 8), end="last")


def pair() -> nn.Sequential:
    """Two convolutions, 3 to 4 to 2 channels, on 8 x 8 and on every other position."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1, stride=2)
    ).eval()


def pair_table(first: tuple[float, ...] = (1.0, 1.5, 4.0), **rest: float) -> LatencyTable:
    """Times of the first layer at 1, 2 and 4 outputs; the second takes .5 ms for each input."""
    return LatencyTable(
        conditions=Conditions(runtime="ncnn", precision="fp32", threads=1, image_chw=IMAGE),
        version="1.0",
        machine="test",
        layers={
            FIRST: LayerTimes(inputs=(3,), outputs=(1, 2, 4), ms=(first,)),
            SECOND: LayerTimes(inputs=(1, 4), outputs=(2,), ms=((0.5,), (2.0,))),
        },
        **rest,
    )


def pair_cost(table: LatencyTable) -> tuple[LatencyCost, ChannelGraph]:
    model = pair()
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    return LatencyCost.of(model, graph, IMAGE, table), graph


def test_layers_are_listed_with_size_activation_and_place() -> None:
    model = pair()
    layers = timed_layers(model, ChannelGraph.of(model, image_chw=IMAGE), IMAGE)
    assert [(layer.name, layer.kind) for layer in layers] == [("0", FIRST), ("3", SECOND)]
    assert [layer.positions for layer in layers] == [64, 16]


def test_two_layers_take_what_is_added_by_hand() -> None:
    cost, graph = pair_cost(pair_table(fixed_ms=0.25, ms_per_value=0.001))
    middle = graph.layers["0"].output_ids
    assert cost.milliseconds() == pytest.approx(4.0 + 2.0 + 0.25 + 0.001 * (4 * 64 + 2 * 16))
    assert cost.milliseconds(middle[:1]) == pytest.approx(2.75 + 1.5 + 0.25 + 0.001 * (3 * 64 + 2 * 16))


def test_channel_saves_the_mean_over_half_of_its_layer() -> None:
    cost, graph = pair_cost(pair_table(ms_per_value=0.001))
    saved = cost.of_channels()[graph.layers["0"].output_ids]
    # (4 - 1.5) / 2 as an output, (2 - 1) / 2 as an input, 64 values.
    np.testing.assert_allclose(saved, 1.25 + 0.5 + 0.064)


def test_width_that_a_larger_one_is_as_fast_as_is_not_used() -> None:
    cost, graph = pair_cost(pair_table(first=(1.0, 5.0, 4.0)))
    group = next(group for group in graph.groups if group.producers == ("0",))
    assert cost.fast_widths_of(group) == (1, 4)  # two channels take 5 + 1 ms, four 4 + 2
    faster, _ = pair_cost(pair_table(first=(1.0, 4.5, 4.0)))
    assert faster.fast_widths_of(group) == (1, 2, 4)


def test_given_widths_replace_those_of_the_rule() -> None:
    _, graph = pair_cost(pair_table())
    ids = graph.layers["0"].output_ids
    importance = np.full(num_ids(graph), np.nan)
    importance[ids] = [1.0, 2.0, 3.0, 4.0]
    allocator = Allocator(
        graph=graph,
        importance=importance,
        candidates=ids,
        rounding=Rounding(direction="down"),
        widths={int(ids[0]): (1, 4)},
    )
    np.testing.assert_array_equal(allocator.at(2.0).dropped, ids[:3])


@settings(max_examples=25)
@given(program=programs, seed=st.integers(0, 999))
def test_predicted_time_is_the_sum_over_the_layers_of_the_cut_network(program: Program, seed: int) -> None:
    model = RandomNetwork(program, cells=1)
    graph = ChannelGraph.of(model, image_chw=IMAGE)
    table = invented_table(model, graph, IMAGE, step=3, fixed_ms=0.5, ms_per_value=1e-3)
    cost = LatencyCost.of(model, graph, IMAGE, table)
    dropped = cuttable_ids(graph, seed=seed)
    pruned = cut(model, graph, dropped, carry=False)
    expected = 0.5
    for layer in cost.layers:
        weight = pruned.get_parameter(f"{layer.name}.weight")
        expected += table.layers[layer.kind].at(weight.shape[1], len(weight))
        expected += 1e-3 * len(weight) * layer.positions
    assert cost.milliseconds(dropped) == pytest.approx(expected)


@pytest.fixture(scope="module")
def model() -> Detector:
    """The tiny network with scales in [0, 1)."""
    torch.manual_seed(0)
    detector = build_model(ModelSpec.from_yaml(TINY_CFG))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 1)
    return detector


def planner_for(model: Detector, target: str, **own: Any) -> Planner:
    table = invented_table(model, ChannelGraph.of(model), (3, 64, 64), fixed_ms=0.05)
    return Planner.of(
        model,
        PlanSettings(
            **{
                "rounding": Rounding(),
                "target": parse_target(target),
                "latency": table,
                "image_chw": (3, 64, 64),
                "cost_power": 1.0,
                "has_fast_widths": True,
                "shortcuts": "tied",
                **own,
            }
        ),
    )


def milliseconds(planner: Planner, *, dropped: Any = None) -> float:
    costs = Costs.of(planner.model, planner.graph, (3, 64, 64), planner.settings.latency)
    return costs.amount("ms", dropped)


@pytest.mark.parametrize("target", ["speedup=2", "ms=50%"])
def test_speedup_is_reached_with_widths_that_are_fast(model: Detector, target: str) -> None:
    planner = planner_for(model, target)
    dropped = planner.allocate().dropped
    dense = milliseconds(planner)
    assert 0.35 * dense < milliseconds(planner, dropped=dropped) <= dense / 2
    keeps = planner.plan(planner.allocate()).keep
    widths = {name: len(kept) for name, kept in keeps.items()}
    assert widths
    assert all(width % 4 == 0 for width in widths.values())


def test_milliseconds_are_an_upper_limit(model: Detector) -> None:
    planner = planner_for(model, "speedup=2")
    goal = 0.6 * milliseconds(planner)
    limited = planner_for(model, f"ms={goal:.6f}", has_fast_widths=False)
    assert milliseconds(limited, dropped=limited.allocate().dropped) <= goal


def test_time_that_cannot_be_reached_is_refused_with_the_nearest(model: Detector) -> None:
    with pytest.raises(PruningError, match=r"target of 0.001 ms cannot be reached .* the nearest is \d\.\d+;"):
        planner_for(model, "ms=0.001").allocate()


def test_importance_per_millisecond_keeps_more_channels(model: Detector) -> None:
    per_ms, plain = (planner_for(model, "speedup=2", cost_power=power).allocate() for power in (1.0, 0.0))
    assert len(per_ms.dropped) < len(plain.dropped)


def test_plan_lists_its_settings_without_the_table(model: Detector) -> None:
    planner = planner_for(model, "speedup=2")
    assert planner.plan(planner.allocate()).settings["latency"] is None
