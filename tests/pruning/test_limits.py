"""Limits of layers: at most a share of the channels of layers that a pattern matches is pruned."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_CFG
from torch import nn

from commands.prune_config import PruneConfig
from commands.prune_rounds import iterative_settings
from commands.slim_config import SlimConfig
from commands.train_sparsity_config import SparsityConfig
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.iterative import before_rounds
from pruning.selection.candidates import least_by_group, least_widths
from pruning.selection.planner import Planner
from pruning.selection.settings import limits_per_round, parse_limits
from tasks.task import Network
from utils.errors import ConfigError, PruningError

IMAGE = (3, 64, 64)


@pytest.fixture(scope="module")
def model() -> Detector:
    """The tiny network with scales in [0, 1), the smallest in its first layers."""
    torch.manual_seed(0)
    detector = build_model(ModelSpec.from_yaml(TINY_CFG))
    for name, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0, 0.1 if name.startswith(("model.0.", "model.1.")) else 1)
    return detector


def shares_pruned(model: Detector, **settings: Any) -> dict[str, float]:
    """The share of its channels that each layer loses."""
    config = PruneConfig(**{"weights": "a.pt", "round": "none", "img_size": 64, **settings})
    planner = Planner.of(model, config.plan_settings(IMAGE))
    keep = planner.plan(planner.allocate()).keep
    widths = {layer.name: len(layer.output_ids) for layer in planner.graph.layers.values() if not layer.is_norm}
    return {name: 1 - len(keep.get(name, range(width))) / width for name, width in widths.items()}


def test_layer_loses_no_more_than_its_limit_and_others_what_importance_says(model: Detector) -> None:
    free = shares_pruned(model, percent=0.5)
    assert min(free["model.0.conv"], free["model.1.conv"]) > 0.8
    limited = shares_pruned(model, percent=0.5, limit=("model.[01].conv=0.25",))
    assert limited["model.0.conv"] == limited["model.1.conv"] == 0.25
    others = free.keys() - {"model.0.conv", "model.1.conv"}
    assert {name: limited[name] for name in others} == {name: free[name] for name in others}


@pytest.mark.parametrize("way", [{"percent": 0.6}, {"target": "macs=92%"}, {"bn_percent": 0.5, "conv_percent": 0.3}])
@pytest.mark.parametrize("rounding", ["none", "pow2", "8"])
@pytest.mark.parametrize("shortcuts", ["skip", "tied"])
def test_limit_holds_in_every_way_of_pruning_and_rounding(
    model: Detector, way: dict[str, Any], rounding: str, shortcuts: str
) -> None:
    limits = ("*=0.5", "model.3.*=0.3", "model.8.cv?.conv=0.1", "model.4.conv=0")
    found = shares_pruned(model, **way, round=rounding, round_direction="down", shortcuts=shortcuts, limit=limits)
    assert all(share <= 0.5 for share in found.values())
    assert all(share <= 0.3 for name, share in found.items() if fnmatchcase(name, "model.3.*"))
    assert all(share <= 0.1 for name, share in found.items() if fnmatchcase(name, "model.8.cv?.conv"))
    assert found["model.4.conv"] == 0.0
    assert max(found.values()) > 0.0


def test_last_pattern_that_matches_counts(model: Detector) -> None:
    first = shares_pruned(model, percent=0.5, limit=("*=0.1", "model.0.conv=0.5"))
    assert first["model.0.conv"] == 0.5
    assert max(share for name, share in first.items() if name != "model.0.conv") <= 0.1
    assert shares_pruned(model, percent=0.5, limit=("model.0.conv=0.5", "*=0.1"))["model.0.conv"] <= 0.1
    assert parse_limits(("a=0.1", "*=0.2", "a=0.3")) == {"*": 0.2, "a": 0.3}


def test_limit_of_one_layer_holds_for_those_that_a_shortcut_joins_to_it(model: Detector) -> None:
    found = shares_pruned(model, percent=0.7, shortcuts="tied", limit=("model.3.cv1.conv=0.25",))
    assert found["model.3.cv1.conv"] == found["model.3.m.0.cv2.conv"] == 0.25


def test_limited_layer_cannot_be_emptied_so_that_the_highest_percent_rises(model: Detector) -> None:
    def limit_of(*limits: str) -> float:
        config = PruneConfig(weights="a.pt", round="none", img_size=64, limit=limits)
        return Planner.of(model, config.plan_settings(IMAGE)).allocator.limit.percent

    assert limit_of() < limit_of("model.[01].conv=0.9") < limit_of("*=0.99") < 1.0


def test_grouped_convolution_keeps_the_share_of_its_groups() -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=4), nn.Conv2d(32, 4, 1))
    graph = ChannelGraph.of(network, image_chw=IMAGE)
    least = least_by_group(graph, least_widths(graph, {"1": 0.3}))
    produced = [group for group in graph.groups if "1" in group.producers]
    kept = sum(least[int(group.ids[0])] / len(group.ids) for group in produced) / len(produced)
    assert 0.7 <= kept <= 1.0


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 300), share=st.floats(0, 1), rounds=st.integers(1, 10))
def test_limit_of_a_round_adds_up_to_the_limit_of_the_run(width: int, share: float, rounds: int) -> None:
    each = parse_limits(limits_per_round((f"*={share!r}",), rounds=rounds))["*"]
    left = width
    for _ in range(rounds):
        layer = nn.Sequential(nn.Conv2d(1, left, 1), nn.Conv2d(left, 1, 1))
        graph = ChannelGraph.of(layer, image_chw=(1, 2, 2))
        left = max(1, least_widths(graph, {"0": each})["0"])
    assert 1 - left / width <= share + 1e-6


def test_rounds_of_slim_share_its_limit() -> None:
    config = SlimConfig(rounds=2, limit=("model.2*=0.36",))
    assert config.sparse_training("a.pt", Path("a"), is_first=True).limit == ("model.2*=0.2",)
    by_penalty = replace(config, sr=0.001)
    assert by_penalty.pruning("a.pt", Path("a"), target="").limit == ("model.2*=0.2",)
    assert by_penalty.sparse_training("a.pt", Path("a"), is_first=True).limit == ()
    assert replace(config, rounds=1).sparse_training("a.pt", Path("a"), is_first=True).limit == ("model.2*=0.36",)


def test_channels_chosen_before_a_training_keep_to_limits() -> None:
    config = SparsityConfig(weights="a.pt", data="d.yaml", sr="auto", limit=("model.2*=0.2",))
    assert config.choice("a.pt").plan_settings(IMAGE).limits == {"model.2*": 0.2}


def test_limit_of_rounds_counts_the_dense_network(model: Detector) -> None:
    config = PruneConfig(
        weights="a.pt", data="d.yaml", criterion="taylor", iterative=True, round="none", limit=("model.4.*=0.25",)
    )
    network = Network(model=model, spec=model.spec, names=("a", "b", "c"))
    found = iterative_settings(network, config, image_chw=IMAGE)
    assert found.least_widths == {"model.4.conv": 24}
    tight = replace(found, ratio=0.9, least_widths=dict.fromkeys(producing_layers(model), 8))
    with pytest.raises(PruningError, match=r"channels cannot be reached .* raise --limit, or use --shortcuts tied"):
        before_rounds(model, settings=tight, image_chw=IMAGE)


def producing_layers(model: Detector) -> list[str]:
    return [layer.name for layer in ChannelGraph.of(model).layers.values() if not layer.is_norm]


@pytest.mark.parametrize("text", ["model.2*", "=0.2", "model.2*=", "model.2*=1.5", "model.2*=-0.1", "a=nan", "a=b"])
def test_text_that_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--limit .*: expected a pattern and a share from 0 to 1, such as"):
        PruneConfig(weights="a.pt", limit=(text,))


def test_limit_that_matches_no_layer_is_refused(model: Detector) -> None:
    with pytest.raises(PruningError, match=r"--limit model.77\* matches no layer; the layers include model.0.conv"):
        shares_pruned(model, limit=("model.77*=0.2",))
