"""A runtime whose detections are known: every bright cell of 32 x 32 pixels of its input is a box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from deploy.settings import RuntimeOptions


class CellRuntime:
    """Red cells are class 0, blue ones class 1; the box is the cell itself."""

    format = ".cells"
    precision = "fp32"
    names = ("red", "blue")
    num_classes = 2
    strides = (32,)

    def __init__(self, *, input_hw: tuple[int, int] | None = None) -> None:
        self.device = torch.device("cpu")
        self.anchors = torch.tensor([[[32.0, 32.0]]])
        self.input_hw = input_hw
        self.seen_shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to one (B, 1, H / 32, W / 32, 7) head."""
        self.seen_shapes.append(tuple(images.shape))
        red, _, blue = F.avg_pool2d(images, 32).unbind(1)
        # A logit of 0 is the cell's centre, and the anchor's size.
        head = torch.zeros(len(images), 1, *red.shape[1:], 7)
        head[:, 0, ..., 4] = torch.where((red > 0.9) ^ (blue > 0.9), 10.0, -10.0)
        head[:, 0, ..., 5] = torch.where(red > blue, 10.0, -10.0)
        head[:, 0, ..., 6] = -head[:, 0, ..., 5]
        return [head]


def load_cells(path: Path, *, device: torch.device, options: RuntimeOptions) -> CellRuntime:
    """The loader as `deploy.formats.FORMATS` wants it."""
    return CellRuntime()


def picture(hw: tuple[int, int], *, red: tuple[int, int] | None = None, blue: tuple[int, int] | None = None):
    """A black RGB picture with a red or blue square of 32 pixels at (left, top)."""
    image = np.zeros((*hw, 3), np.uint8)
    for channel, corner in ((0, red), (2, blue)):
        if corner is not None:
            left, top = corner
            image[top : top + 32, left : left + 32, channel] = 255
    return image
