"""The detection head: one 1x1 convolution per scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.anchors import Anchors, anchors_in_cells


class Detect(nn.Module):
    """The detection head: raw predictions before the sigmoid; all runtimes share `utils/boxes/decode.py`.

    Args:
        num_classes: Number of classes.
        anchors: Anchor sizes in pixels, one row w, h, w, h, ... per head.
        strides: Pixels per cell of each head.
        in_channels: Channels of each feature map.
    """

    anchors: Tensor

    def __init__(
        self, *, num_classes: int, anchors: Anchors, strides: Sequence[int], in_channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.num_anchors = len(anchors[0]) // 2
        self.num_outputs = 5 + num_classes
        self.m = nn.ModuleList(nn.Conv2d(c, self.num_anchors * self.num_outputs, 1) for c in in_channels)
        # In cells, not pixels: the checkpoint format.
        self.register_buffer("anchors", anchors_in_cells(anchors, strides))
        self._init_biases(num_classes, strides)

    def _init_biases(self, num_classes: int, strides: Sequence[int]) -> None:
        """Set biases to predict about 8 objects in a 640 px image and classes at 0.6 / nc; early losses stay small.

        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 3.3.
        """
        for conv, stride in zip(self.m, strides, strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            with torch.no_grad():
                bias = conv.bias.view(self.num_anchors, -1)
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / (num_classes - 0.99))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Map the feature map (B, C, H, W) of each head to (B, A, H, W, 5 + nc), not always contiguous."""
        heads = []
        for conv, feature in zip(self.m, features, strict=True):
            y = conv(feature)
            y = y.view(y.shape[0], self.num_anchors, self.num_outputs, y.shape[2], y.shape[3])
            heads.append(y.permute(0, 1, 3, 4, 2))  # (B, A, H, W, 5 + nc)
        return heads
