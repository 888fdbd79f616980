"""Attention of torch, opened so that its heads can be cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from column_oracle import deaf_to
from cut_oracle import difference
from mask_oracle import outputs
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from pruning.surgery.open_attention import OpenAttention, with_open_attention
from utils.boxes.torchvision_compat import import_torchvision
from utils.errors import PruningError


@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 5, "vdim": 7}])
def test_opened_attention_computes_the_same(settings: dict[str, int]) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, **settings).double().eval()  # type: ignore[arg-type]
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    query, key, value = (
        torch.rand(3, 4, settings.get(name, 8), dtype=torch.float64) for name in ("", "kdim", "vdim")
    )
    length = 4 if attention.batch_first else 3
    for mask in (None, torch.ones(length, length).triu(1).bool()):
        expected = attention(query, key, value, attn_mask=mask)[0]
        found, weights = OpenAttention(attention)(query, key, value, attn_mask=mask)
        assert weights is None
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_attention_with_more_keys_is_refused_by_name() -> None:
    with pytest.raises(PruningError, match="add_bias_kv or add_zero_attn cannot be opened"):
        with_open_attention(nn.Sequential(nn.MultiheadAttention(8, 2, add_zero_attn=True)))
    attention, mask = OpenAttention(nn.MultiheadAttention(8, 2)), torch.zeros(4, 3, dtype=torch.bool)
    with pytest.raises(PruningError, match="no key_padding_mask"):
        attention(*[torch.rand(3, 4, 8)] * 3, key_padding_mask=mask)


def small_transformer() -> nn.Module:
    """A vision transformer of torchvision with two layers of four heads."""
    make = import_torchvision().models.VisionTransformer
    model: nn.Module = make(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=20, num_classes=3
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def test_heads_and_widths_of_a_transformer_are_cut_exactly() -> None:
    torch.manual_seed(0)
    closed = small_transformer()
    model = with_open_attention(closed)
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    assert difference(outputs(model, images), outputs(closed, images)) < 1e-12
    graph = ChannelGraph.of(model, image_chw=(3, 32, 32))
    heads = np.unique(graph.layers["encoder.layers.encoder_layer_0.self_attention.q"].output_ids)
    hidden = graph.layers["encoder.layers.encoder_layer_1.mlp.0"].output_ids
    assert (len(heads), len(hidden), len(graph.prunable_ids)) == (4, 20, 2 * (4 + 20))
    dropped = np.concatenate([heads[[0, 2]], hidden[5:15]])
    expected = outputs(deaf_to(model, graph, dropped), images)
    pruned = cut(model, graph, dropped, carry=False)
    assert difference(outputs(pruned, images), expected) < 1e-10
    attention = pruned.get_submodule("encoder.layers.encoder_layer_0.self_attention")
    assert isinstance(attention, OpenAttention)
    assert attention.v.weight.shape == (8, 16)


def test_transformer_cut_without_opening_keeps_its_attention() -> None:
    graph = ChannelGraph.of(small_transformer(), image_chw=(3, 32, 32))
    assert len(graph.prunable_ids) == 2 * 20
    pruned = cut(small_transformer(), graph, graph.prunable_ids[::2])
    attention = pruned.get_submodule("encoder.layers.encoder_layer_1.self_attention")
    assert isinstance(attention, nn.MultiheadAttention)


def test_gradients_reach_what_is_left() -> None:
    model = with_open_attention(small_transformer().float())
    graph = ChannelGraph.of(model, image_chw=(3, 32, 32))
    pruned = cut(model, graph, graph.prunable_ids[:1]).train()
    loss: Tensor = pruned(torch.rand(2, 3, 32, 32)).square().sum()
    loss.backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
