"""The cut of random networks, against the masked network."""

from __future__ import annotations

import torch
from cut_oracle import cut_difference, cuttable_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_oracle import lively
from random_networks import Program, RandomNetwork, programs

from pruning.cost import ChannelCost
from pruning.graph import ChannelGraph
from pruning.surgery import cut
from utils.complexity import count_macs, count_parameters


@settings(max_examples=200)
@given(program=programs, cells=st.integers(1, 2), seed=st.integers(0, 999))
def test_random_network_cut_equals_it_masked(program: Program, cells: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = lively(RandomNetwork(program, cells=cells))
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    dropped = cuttable_ids(graph, seed=seed)
    assert cut_difference(model, graph, dropped, may_be_silent=True) < 1e-10
    cost = ChannelCost.of(model, graph, (3, 8, 8))
    pruned = cut(model, graph, dropped, carry=False)
    assert cost.macs(dropped) == count_macs(pruned, (3, 8, 8))
    # What a network never runs is no part of the one that its trace becomes.
    if not isinstance(pruned, torch.fx.GraphModule):
        assert cost.parameters(dropped) == count_parameters(pruned)
