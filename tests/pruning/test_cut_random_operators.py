"""The cut of random networks of every operator, against networks that are deaf to the dropped channels."""

from __future__ import annotations

import pytest
import torch
from column_oracle import deaf_to
from cut_oracle import cuttable_ids, difference
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mask_oracle import lively, outputs
from operator_networks import BODIES, KINDS, LAYERS, SIDE, OperatorNetwork, Program

from pruning.channels.graph import ChannelGraph
from pruning.channels.operators import FUNCTION_RULES, MODULE_RULES
from pruning.surgery.cut import cut

# More is not exact: other precisions. The rest are spelled inside of other steps.
_ELSEWHERE = {"float", "half", "to", "dropout1d", "stochastic_depth", "reshape", "multihead_attention", "conv2d"}

programs = st.lists(
    st.tuples(st.sampled_from(KINDS), st.integers(0, 99), st.integers(0, 99), st.integers(2, 6)),
    min_size=2,
    max_size=7,
)


def is_checked(program: Program, seed: int) -> bool:
    """Compare the cut network with the deaf one; False if the network itself makes numbers that are not finite."""
    torch.manual_seed(seed)
    model = lively(OperatorNetwork(program))
    graph = ChannelGraph.of(model, image_chw=(3, SIDE, SIDE))
    dropped = cuttable_ids(graph, seed=seed) if len(graph.prunable_ids) else graph.prunable_ids
    images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    expected = outputs(deaf_to(model, graph, dropped), images)
    if not torch.isfinite(expected).all():
        return False
    assert difference(outputs(cut(model, graph, dropped, carry=False), images), expected) < 1e-10
    return True


def test_every_operator_with_a_rule_is_among_the_steps() -> None:
    assert (MODULE_RULES.keys() | FUNCTION_RULES.keys()) - _ELSEWHERE <= {*BODIES, *LAYERS}
    assert sum(name.startswith("unknown") for name in BODIES) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_network_around_one_operator_cut_equals_the_deaf_one(kind: str) -> None:
    assert is_checked([("conv", 0, 0, 4), (kind, 1, 0, 4), ("conv", 2, 1, 4)], seed=1)


@settings(max_examples=500)
@given(program=programs, seed=st.integers(0, 999))
def test_random_network_of_operators_cut_equals_the_deaf_one(program: Program, seed: int) -> None:
    assume(is_checked(program, seed))
