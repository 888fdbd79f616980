"""Random networks against the masking oracle."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_oracle import deviation, some_ids
from random_networks import Program, RandomNetwork, programs

from pruning.channels.graph import ChannelGraph


@settings(max_examples=80)
@given(program=programs, cells=st.integers(1, 2), seed=st.integers(0, 999))
def test_readers_of_a_masked_channel_do_not_matter_in_random_networks(
    program: Program, cells: int, seed: int
) -> None:
    torch.manual_seed(seed)
    model = RandomNetwork(program, cells=cells)
    graph = ChannelGraph.of(model, image_chw=(3, 8, 8))
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    dropped = some_ids(graph, seed=seed, share=0.4)
    assert set(graph.layers["head.0"].output_ids) <= set(graph.prunable_ids)
    assert deviation(model, graph, images, dropped, may_be_silent=True) < 1e-10
