"""C3 with a transformer in place of its bottlenecks, as in v5.0.

Vaswani et al., "Attention Is All You Need", NIPS 2017; without layer norm and dropout, and with a learnt
linear position term, as in YOLOv5, whose parameter names these are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.blocks.conv import Block, Conv
from models.widths import Width, Widths
from utils.errors import ConfigError

NUM_HEADS = 4


class TransformerLayer(nn.Module):
    """Self-attention and a two-layer linear map, each with a shortcut around it."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(channels, channels, bias=False)
        self.v = nn.Linear(channels, channels, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=channels, num_heads=num_heads)
        self.fc1 = nn.Linear(channels, channels, bias=False)
        self.fc2 = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (cells, B, C) to a tensor of the same shape."""
        x = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)[0] + x
        y: Tensor = self.fc2(self.fc1(x)) + x
        return y


class TransformerBlock(nn.Module):
    """A chain of transformer layers over the cells of a map."""

    def __init__(self, channels: int, num_layers: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.tr = nn.Sequential(*(TransformerLayer(channels, NUM_HEADS) for _ in range(num_layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a tensor of the same shape."""
        cells = x.flatten(2).permute(2, 0, 1)  # (H * W, B, C)
        cells = self.tr(cells + self.linear(cells))
        y: Tensor = cells.permute(1, 2, 0).reshape(x.shape)
        return y


class C3TR(Block):
    """C3 with a transformer in its inner half, whose channel count must be divisible by the number of heads."""

    def __init__(
        self,
        cin: Width,
        c2: int,
        n: int = 1,
        shortcut: bool = True,  # unused: part of every C3's argument list; a transformer has its own shortcuts
        *,
        widths: Widths,
    ) -> None:
        super().__init__()
        hidden = c2 // 2
        self.cv1 = Conv(cin, widths.conv("cv1", hidden))
        self.cv2 = Conv(cin, widths.conv("cv2", hidden))
        if self.cv1.out_channels % NUM_HEADS:
            raise ConfigError(f"C3TR: cv1 has {self.cv1.out_channels} channels, expected a multiple of {NUM_HEADS}")
        self.m = TransformerBlock(self.cv1.out_channels, n)
        self.cv3 = Conv(self.cv1.out + self.cv2.out, widths.conv("cv3", c2))
        self.out = self.cv3.out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y
