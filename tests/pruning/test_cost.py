"""Costs of networks that are not cut yet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cut_oracle import cuttable_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import Program, RandomNetwork, programs
from torch import fx, nn

from models.classifiers import LeNet5
from models.complexity import count_macs, count_parameters
from models.detector import build_model
from models.spec import ModelSpec
from pruning.channels.graph import ChannelGraph
from pruning.importance.cost import ChannelCost
from pruning.surgery.cut import cut
from utils.boxes.torchvision_compat import import_torchvision


def test_lenet_without_one_filter_costs_what_is_counted_by_hand() -> None:
    model = LeNet5()
    graph = ChannelGraph.of(model, image_chw=(1, 28, 28))
    cost = ChannelCost.of(model, graph, (1, 28, 28))
    assert (cost.parameters(), cost.macs()) == (61_706, 416_520)
    filters = graph.layers["features.3"].output_ids[:1]
    # One of 16 filters over 6 maps, with its bias, and 25 inputs of 120 outputs.
    assert cost.parameters(filters) == 61_706 - (6 * 25 + 1) - 25 * 120
    assert cost.macs(filters) == 416_520 - 6 * 25 * 100 - 25 * 120


@pytest.mark.parametrize("name", ["yolov5s", "yolov5-panet", "yolov5s-mobilenetv3-small-075", "yolov5s-transformer"])
def test_detector_costs_what_it_does_after_the_cut(name: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec.from_yaml(name))
    graph = ChannelGraph.of(model)
    dropped = cuttable_ids(graph, seed=0)
    pruned = cut(model, graph, dropped, carry=False)
    cost = ChannelCost.of(model, graph, (3, 128, 192))
    assert cost.macs() == cost.macs(np.array([], dtype=np.int64)) == count_macs(model, (3, 128, 192))
    assert cost.macs(dropped) == count_macs(pruned, (3, 128, 192)) < cost.macs()
    assert cost.parameters() == count_parameters(model)
    assert cost.parameters(dropped) == count_parameters(pruned)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "resnext50_32x4d"])
def test_classifier_costs_what_it_does_after_the_cut(name: str) -> None:
    with torch.device("meta"):
        model: nn.Module = getattr(import_torchvision().models, name)(weights=None)
    graph = ChannelGraph.of(model)
    dropped = cuttable_ids(graph, seed=0)
    pruned = cut(model, graph, dropped, carry=False)
    cost = ChannelCost.of(model, graph, (3, 64, 64))
    assert cost.macs(dropped) == count_macs(pruned, (3, 64, 64))
    assert cost.parameters(dropped) == count_parameters(pruned)


@settings(max_examples=25)
@given(program=programs, seed=st.integers(0, 999))
def test_channel_costs_what_the_network_saves_without_it(program: Program, seed: int) -> None:
    model = RandomNetwork(program, cells=1)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    cost = ChannelCost.of(model, graph, (3, 8, 8))
    one = np.random.default_rng(seed).choice(graph.prunable_ids, 1)
    # A layer that both reads and makes the channel counts its own weight twice: once in each direction.
    if not any(np.isin(one, layer.input_ids) & np.isin(one, layer.output_ids) for layer in graph.layers.values()):
        assert cost.of_channels("macs")[one] == cost.macs() - cost.macs(one)
        assert cost.of_channels("params")[one] == cost.parameters() - cost.parameters(one)


@settings(max_examples=25)
@given(program=programs, seed=st.integers(0, 999))
def test_random_network_costs_what_it_does_after_the_cut(program: Program, seed: int) -> None:
    model = RandomNetwork(program, cells=1)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    dropped = cuttable_ids(graph, seed=seed)
    cost = ChannelCost.of(model, graph, (3, 8, 8))
    pruned = cut(model, graph, dropped, carry=False)
    assert cost.macs(dropped) == count_macs(pruned, (3, 8, 8))
    # Modules that a network never runs are no part of its trace.
    if not isinstance(pruned, fx.GraphModule):
        assert cost.parameters(dropped) == count_parameters(pruned)
