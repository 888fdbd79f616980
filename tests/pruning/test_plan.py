"""Plans as files: they come back as they were, and fit one network alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import TINY_CFG

from models.detector import Detector, build_model
from models.fingerprint import network_fingerprint
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.importance.criteria import num_ids
from pruning.surgery.plan import PruningPlan
from utils.errors import PruningError

SPEC = ModelSpec.from_yaml(TINY_CFG)


@pytest.fixture(scope="module")
def model() -> Detector:
    return build_model(SPEC)


@pytest.fixture(scope="module")
def graph(model: Detector) -> ChannelGraph:
    return ChannelGraph.of(model)


def test_plan_lists_the_channels_that_stay(model: Detector, graph: ChannelGraph) -> None:
    dropped = graph.layers["model.0.conv"].output_ids[[1, 2, 5]]
    plan = PruningPlan.of(model, graph, dropped)
    assert plan.keep == {"model.0.conv": (0, 3, 4, 6, 7)}
    np.testing.assert_array_equal(plan.dropped_ids(model, graph), np.sort(dropped))


def test_layers_that_an_addition_joins_keep_the_same_channels(model: Detector, graph: ChannelGraph) -> None:
    plan = PruningPlan.of(model, graph, graph.layers["model.3.cv1.conv"].output_ids[:2])
    rest = tuple(range(2, 8))
    assert plan.keep == {"model.3.cv1.conv": rest, "model.3.m.0.cv2.conv": rest}


def test_plan_comes_back_from_its_file(model: Detector, graph: ChannelGraph, tmp_path: Path) -> None:
    plan = PruningPlan.of(
        model,
        graph,
        graph.prunable_ids[::3],
        settings={"percent": 0.3, "protect": ["a*"]},
        bottlenecks=("model.3.m.0",),
        fingerprint="before",
        importance=np.random.default_rng(0).normal(size=num_ids(graph)),
    )
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_plan_keeps_the_importance_of_every_output_to_four_digits(model: Detector, graph: ChannelGraph) -> None:
    importance = np.arange(num_ids(graph)) / 7e5
    importance[graph.layers["model.1.conv"].output_ids[:3]] = (np.nan, np.inf, 123456.0)
    plan = PruningPlan.of(model, graph, graph.prunable_ids[:3], importance=importance)
    assert plan.importance.keys() == {layer.name for layer in graph.layers.values() if not layer.is_norm}
    assert plan.importance["model.1.conv"][:3] == (None, None, 123500.0)
    for name, values in plan.importance.items():
        ids = graph.layers[name].output_ids
        assert len(values) == len(ids)
        known = [(value, importance[i]) for value, i in zip(values, ids, strict=True) if value is not None]
        np.testing.assert_allclose(*zip(*known, strict=True), rtol=5.1e-4)


def test_plan_without_importance_is_read(model: Detector, graph: ChannelGraph, tmp_path: Path) -> None:
    plan = PruningPlan.of(model, graph, graph.prunable_ids[:3], importance=np.ones(num_ids(graph)))
    old = {name: value for name, value in plan.to_dict().items() if name != "importance"}
    (tmp_path / "plan.json").write_text(json.dumps(old))
    assert PruningPlan.load(tmp_path / "plan.json") == replace(plan, importance={})


def test_file_of_a_plan_has_each_list_on_one_line(model: Detector, graph: ChannelGraph, tmp_path: Path) -> None:
    settings = {"protect": ["a [b  c]", "d"], "none": []}
    importance = np.random.default_rng(0).random(num_ids(graph))
    plan = PruningPlan.of(model, graph, graph.prunable_ids[::2], settings=settings, importance=importance)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    assert json.loads(text) == plan.to_dict()
    assert len(text.splitlines()) < len(plan.keep) + len(plan.importance) + 20
    assert len(text) < 15 * num_ids(graph) + 100 * len(plan.importance)


@pytest.mark.parametrize("importance", [3, {"model.0.conv": 3}, {"model.0.conv": ["a"]}, []])
def test_importance_of_another_kind_is_refused(model: Detector, graph: ChannelGraph, importance: object) -> None:
    values = {**PruningPlan.of(model, graph, graph.prunable_ids[:3]).to_dict(), "importance": importance}
    with pytest.raises(PruningError, match="here: not a pruning plan"):
        PruningPlan.from_dict(values, where="here")


def test_fingerprint_knows_names_and_shapes_but_no_numbers(model: Detector) -> None:
    fingerprint = network_fingerprint(model)
    assert network_fingerprint(build_model(SPEC)) == fingerprint
    narrower = build_model(replace(SPEC, widths={"model.0": 7}))
    assert network_fingerprint(narrower) != fingerprint


def test_plan_for_another_network_is_refused(model: Detector, graph: ChannelGraph) -> None:
    plan = PruningPlan.of(model, graph, graph.prunable_ids[:1])
    plan.check_fits(build_model(SPEC))
    with pytest.raises(PruningError, match=r"made for another network \(fingerprint .*; make a plan for this one"):
        plan.check_fits(build_model(replace(SPEC, widths={"model.0": 7})))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"model.0.conv": (0, 8)}, "the plan's layer model.0.conv does not fit this network"),
        ({"model.99.conv": (0,)}, "the plan's layer model.99.conv does not fit this network"),
        ({"model.3.cv1.conv": (0, 1)}, "model.3.m.0.cv2.conv keeps a channel that another layer, joined to it"),
    ],
)
def test_plan_that_does_not_fit_the_layers_is_refused(
    model: Detector, graph: ChannelGraph, keep: dict[str, tuple[int, ...]], message: str
) -> None:
    plan = PruningPlan(fingerprint=network_fingerprint(model), keep=keep)
    with pytest.raises(PruningError, match=message):
        plan.dropped_ids(model, graph)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ((), "keeps none of its channels; lower --percent"),
        ((1, 0), "must be distinct, ascending and not negative"),
        ((1, 1), "must be distinct, ascending and not negative"),
        ((-1, 0), "must be distinct, ascending and not negative"),
    ],
)
def test_channels_that_are_no_choice_are_refused(kept: tuple[int, ...], message: str) -> None:
    with pytest.raises(PruningError, match=f"layer model.0.conv: the plan.*{message}"):
        PruningPlan(fingerprint="", keep={"model.0.conv": kept})


@pytest.mark.parametrize(
    "content",
    [[], {}, {"fingerprint": "a"}, {"fingerprint": "a", "keep": 3, "bottlenecks": [], "settings": {}}, "text", None],
)
def test_json_that_is_no_plan_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PruningError, match=r"plan .*plan.json: not a pruning plan .*; use one that prune.py wrote"):
        PruningPlan.load(path)


def test_empty_layer_in_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"fingerprint": "", "keep": {"a": []}, "bottlenecks": [], "settings": {}}))
    with pytest.raises(PruningError, match="plan.json: layer a: the plan keeps none"):
        PruningPlan.load(path)


@pytest.mark.parametrize("content", [b"no json", b"\xff\xfe", None])
def test_file_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PruningError, match="cannot be read .*; give a plan that prune.py wrote"):
        PruningPlan.load(path)
