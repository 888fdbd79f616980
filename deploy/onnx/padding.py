"""Zero padding before a max pool, in a form that onnxruntime does not break."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class JoinedZeros(nn.Module):
    """`nn.ZeroPad2d` by joining zeros to the map.

    onnxruntime (1.31, optimizer Pad_Fusion) merges a Pad of zeros into the max pool after it, whose own padding is
    minus infinity. Where all numbers at the border are negative, as they may be behind SiLU, the maximum is then
    another: 4 % of the largest output of yolov3-tiny. A Concat is not merged.

    Args:
        padding: Columns on the left and right, rows at the top and bottom.
    """

    def __init__(self, padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, top + H + bottom, left + W + right)."""
        left, right, top, bottom = self.padding
        for axis, before, after in ((3, left, right), (2, top, bottom)):
            zeros = torch.zeros_like(x.narrow(axis, 0, 1))
            x = torch.cat([*[zeros] * before, x, *[zeros] * after], axis)
        return x


def join_zeros_(network: nn.Module) -> None:
    """Replace every `nn.ZeroPad2d` of a network by `JoinedZeros`, in place."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ZeroPad2d):
                left, right, top, bottom = child.padding
                setattr(parent, name, JoinedZeros((left, right, top, bottom)))
