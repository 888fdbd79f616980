"""Decoding of raw heads to boxes, shared by all runtimes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def decode_heads(heads: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Turn raw heads into boxes and probabilities.

    With s the sigmoid: xy = (2 s - 0.5 + cell) * stride, wh = (2 s)^2 * anchor (YOLOv5 v5.0).

    Args:
        heads: Raw head of each level (B, A, H, W, 5 + nc), before the sigmoid.
        anchors: Widths and heights (levels, A, 2) in pixels.
        strides: Pixels per cell of each level.

    Returns:
        Boxes (B, N, 5 + nc) float32: cx, cy, w, h in pixels of the network's input, objectness, class
        probabilities; levels in order, within a level anchor by anchor, row by row.
    """
    decoded = []
    for head, anchor, stride in zip(heads, anchors, strides, strict=True):
        batch, num_anchors, height, width, outputs = head.shape
        values = head.float().sigmoid()
        rows, columns = torch.meshgrid(
            torch.arange(height, device=head.device, dtype=torch.float32),
            torch.arange(width, device=head.device, dtype=torch.float32),
            indexing="ij",
        )
        cells = torch.stack((columns, rows), -1)  # (H, W, 2)
        sizes = anchor.to(head.device, torch.float32).view(1, num_anchors, 1, 1, 2)
        xy = (values[..., :2] * 2 - 0.5 + cells) * stride
        wh = (values[..., 2:4] * 2) ** 2 * sizes
        level = torch.cat((xy, wh, values[..., 4:]), -1)
        decoded.append(level.view(batch, num_anchors * height * width, outputs))
    return torch.cat(decoded, 1)
