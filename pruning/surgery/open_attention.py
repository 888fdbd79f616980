"""Attention whose heads are channels: the same layer as `nn.MultiheadAttention`, written out in plain layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.copies import twin_that_shares
from utils.errors import PruningError


class OpenAttention(nn.Module):
    """Multi-head attention (Vaswani et al., NIPS 2017) of four linear layers, any number of whose heads may be cut.

    Attributes:
        q, k, v: Maps from the width of query, key and value to heads x head_dim.
        out: Map back to the width of the query.
        head_dim: Channels of one head.
        batch_first: Whether tensors are (B, N, C), else (N, B, C).
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        """Take over the weights of an attention layer, sharing no memory with it.

        Raises:
            PruningError: It adds learnt or zero keys, for which there is no head.
        """
        super().__init__()
        if attention.bias_k is not None or attention.add_zero_attn:
            raise PruningError("attention with add_bias_kv or add_zero_attn cannot be opened; leave it as it is")
        self.head_dim, self.batch_first = attention.head_dim, attention.batch_first
        weights, biases = _projections(attention)
        self.q, self.k, self.v = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.out = _linear(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend; the arguments are those of `nn.MultiheadAttention`.

        Args:
            query: (B, N, C), or (N, B, C) unless `batch_first`.
            key, value: (B, M, C), likewise.
            key_padding_mask: Not supported.
            need_weights, average_attn_weights: Without effect: no attention weights are returned.
            attn_mask: (N, M), True or minus infinity where a query must not look.
            is_causal: Without effect beside `attn_mask`, as there.

        Returns:
            The result, of the shape of `query`, and None in place of attention weights.
        """
        if key_padding_mask is not None:
            raise PruningError("opened attention takes no key_padding_mask; leave the layer as it is")
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask
        tokens = (
            (query, key, value) if self.batch_first else tuple(each.transpose(0, 1) for each in (query, key, value))
        )
        heads = [
            layer(each).reshape(each.shape[0], each.shape[1], -1, self.head_dim).transpose(1, 2)
            for layer, each in zip((self.q, self.k, self.v), tokens, strict=True)
        ]
        mixed = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return (made if self.batch_first else made.transpose(0, 1)), None


def with_open_attention(model: nn.Module) -> nn.Module:
    """Copy a network, in evaluation mode, with `OpenAttention` for each `nn.MultiheadAttention`.

    It computes the same, and `ChannelGraph.of` sees its heads. Other weights share memory with those of `model`.

    Raises:
        PruningError: A layer adds learnt or zero keys.
    """
    twin = twin_that_shares(model)
    for path, module in list(twin.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            parent, _, name = path.rpartition(".")
            setattr(twin.get_submodule(parent), name, OpenAttention(module).eval())
    return twin


def _projections(attention: nn.MultiheadAttention) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return weights and biases of the maps of query, key and value."""
    if attention.in_proj_weight is not None:
        weights = list(attention.in_proj_weight.chunk(3))
    else:
        weights = [getattr(attention, f"{name}_proj_weight") for name in "qkv"]
    bias = attention.in_proj_bias
    return weights, [None] * 3 if bias is None else list(bias.chunk(3))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
