"""Which layers the search leaves in floating point within a budget, by tables of times, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from exporting import classifier_job
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.int8.mixes import Int8Mix, LayerTime, MixedLayer, MixSearch, loss_left, packed
from deploy.onnx.network import write_onnx
from deploy.settings import FormatSettings, Int8Budget
from models.classifiers import LeNet5
from utils.errors import ConfigError

# In int8 all of it takes 5 ms, in floating point 7; "slow" is faster in floating point.
TIMES = {
    "wide": LayerTime(floats=3, int8=1),
    "deep": LayerTime(floats=2, int8=1),
    "slow": LayerTime(floats=1, int8=2),
}
SHARES = {"wide": 0.5, "deep": 0.4, "slow": 0.1}


def summed(times: Mapping[str, LayerTime], *, rest: float = 1.0) -> Callable[[frozenset[str]], float]:
    """A runtime on which the times of layers add up."""
    return lambda floats: rest + sum(time.floats if name in floats else time.int8 for name, time in times.items())


def chosen(budget_ms: float, *, measure: Callable[[frozenset[str]], float] | None = None) -> set[str]:
    search = MixSearch(TIMES, measure or summed(TIMES), budget_ms=budget_ms)
    search.check_reachable()
    return set(search.best(SHARES).floats)


@pytest.mark.parametrize(
    ("budget_ms", "floats"),
    [(4, {"slow"}), (4.9, {"slow"}), (5, {"slow", "deep"}), (6.9, {"slow", "wide"}), (7, {"slow", "deep", "wide"})],
)
def test_layers_that_lose_most_for_their_time_stay_in_floats(budget_ms: float, floats: set[str]) -> None:
    assert chosen(budget_ms) == floats


def test_whole_networks_decide_where_times_of_layers_mislead() -> None:
    def measure(floats: frozenset[str]) -> float:
        """Going to floats and back between "slow" and "deep" takes as long as it saves."""
        return summed(TIMES)(floats) + (1.0 if floats == {"slow", "deep"} else 0.0)

    assert chosen(5, measure=measure) == {"slow"}


def test_all_in_int8_is_taken_where_only_it_fits() -> None:
    def measure(floats: frozenset[str]) -> float:
        return summed(TIMES)(floats) + (2.0 if floats else 0.0)

    assert chosen(5.5, measure=measure) == set()


def test_network_that_was_within_the_budget_by_chance_is_not_taken() -> None:
    seen: list[frozenset[str]] = []

    def measure(floats: frozenset[str]) -> float:
        """The first time, "slow" and "deep" together are timed 2 ms too short."""
        lucky = floats == {"slow", "deep"} and floats not in seen
        seen.append(floats)
        return summed(TIMES)(floats) - (2.0 if lucky else 0.0)

    assert chosen(4.5, measure=measure) == {"slow"}
    assert seen.count(frozenset({"slow", "deep"})) == 2


def test_budget_that_nothing_keeps_a_second_time_gives_the_fastest() -> None:
    calls: list[frozenset[str]] = []

    def measure(floats: frozenset[str]) -> float:
        """Each network takes 3 ms more when it is timed again."""
        calls.append(floats)
        return summed(TIMES)(floats) + 3.0 * (calls.count(floats) - 1)

    search = MixSearch(TIMES, measure, budget_ms=4.5)
    search.check_reachable()
    best = search.best(SHARES)
    assert best.ms > 4.5
    assert best.ms == min(trial.ms for trial in search.trials)


def test_budget_below_the_fastest_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        chosen(3.3, measure=lambda floats: summed(TIMES)(floats) + 0.0021)
    assert str(caught.value) == (
        "--int8-budget ms=3.3: the fastest mix takes 4 ms here, with 2 of 3 layers in int8; the nearest that can be "
        "reached is ms=4.01"
    )


@settings(max_examples=30, deadline=None)
@given(
    layers=st.lists(st.tuples(*[st.floats(0.01, 9)] * 2, st.floats(0, 1)), min_size=1, max_size=30),
    switch=st.floats(0, 2),
    where=st.floats(0, 1),
)
def test_choice_is_within_the_budget_and_no_worse_than_what_else_was_measured(
    layers: list[tuple[float, float, float]], switch: float, where: float
) -> None:
    times = {f"layer{index}": LayerTime(floats=a, int8=b) for index, (a, b, _) in enumerate(layers)}
    shares = {f"layer{index}": share for index, (_, _, share) in enumerate(layers)}
    names = list(times)

    def measure(floats: frozenset[str]) -> float:
        changes = sum((one in floats) != (other in floats) for one, other in pairwise(names))
        return summed(times)(floats) + switch * changes

    ends = [measure(frozenset()), measure(frozenset(times))]
    search = MixSearch(times, measure, budget_ms=min(ends) + where * abs(ends[1] - ends[0]))
    search.check_reachable()
    best = search.best(shares)
    fitting = [trial for trial in search.trials if trial.ms <= min(ends) + where * abs(ends[1] - ends[0])]
    assert best in fitting
    assert loss_left(shares, best.floats) == min(loss_left(shares, trial.floats) for trial in fitting)
    # The three of the beginning, eight between two of them, and three of what should be best.
    assert len(search.trials) <= 14


def test_packing_finds_what_an_order_by_price_does_not() -> None:
    costs, values = {"a": 6.0, "b": 5.0, "c": 5.0}, {"a": 0.7, "b": 0.5, "c": 0.5}
    assert packed(costs, values, room=10) == {"b", "c"}
    assert packed(costs, values, room=9.9) == {"a"}
    assert packed(costs, values, room=4.9) == packed(costs, values, room=-1) == set()


def test_classifier_gets_a_mix_and_layers_of_which_only_some_can_be_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    mixes: list[Int8Mix] = []
    torch.manual_seed(0)
    images = torch.randn(4, 1, 28, 28).split(1)
    job = classifier_job(LeNet5(), precision="int8", calibration=images, image_hw=(28, 28))
    budget = Int8Budget(milliseconds=1e6, threads=1)
    write_onnx(replace(job, special=FormatSettings(int8_budget=budget), tell_mix=mixes.append), tmp_path / "a.onnx")
    (mix,) = mixes
    timed = {layer.layer: layer for layer in mix.layers if layer.float_ms is not None}
    # onnxruntime keeps the first layer in floating point, and every runtime the last.
    assert [layer.layer in timed for layer in mix.layers] == [False, *[True] * (len(mix.layers) - 2), False]
    assert all(layer.int8_ms is not None and layer.share is not None for layer in timed.values())
    assert sum(layer.share or 0 for layer in timed.values()) == pytest.approx(1)


def test_mix_says_what_was_chosen_and_how_long_it_takes() -> None:
    mix = Int8Mix(
        runtime="ncnn",
        floats="fp16",
        budget_ms=12,
        ms=11.84,
        float_ms=18.3,
        int8_ms=9.87,
        loss_left=0.314,
        threads=1,
        layers=[MixedLayer(layer="a", precision="int8", share=1.0), MixedLayer(layer="b", precision="fp16")],
        trials=[(1, 9.9)],
    )
    assert mix.as_text() == (
        "ncnn within ms=12: 1 of 2 layers in int8, the rest in fp16: 11.8 ms; all in fp16 18.3, all in int8 9.87 "
        "(threads: 1); 31% of the loss of int8 is left"
    )
    assert mix.to_dict()["is_within"] is True
    assert mix.to_dict()["layers"][1] == {
        "layer": "b",
        "precision": "fp16",
        "float_ms": None,
        "int8_ms": None,
        "share": None,
    }
