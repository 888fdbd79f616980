"""The cut of random networks, against the masked network."""

from __future__ import annotations

import torch
from cut_oracle import cuttable_ids, difference, image_for
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_oracle import lively, outputs, silence_
from random_networks import Program, RandomNetwork, programs

from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut


@settings(max_examples=200)
@given(program=programs, cells=st.integers(1, 2), seed=st.integers(0, 999))
def test_random_network_cut_equals_it_masked(program: Program, cells: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = lively(RandomNetwork(program, cells=cells))
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    dropped = cuttable_ids(graph, seed=seed)
    images = image_for(model, graph)
    pruned = cut(model, graph, dropped, carry=False)
    silence_(model, graph, dropped)
    assert difference(outputs(pruned, images), outputs(model, images)) < 1e-10
