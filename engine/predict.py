"""What turns images into decoded boxes: a network, several, or one that looks more than once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.decode import decode_heads

# Images (B, 3, H, W) in [0, 1] to decoded boxes (B, N, 5 + nc), see utils.decode.
Predict = Callable[[Tensor], Tensor]
# Test-time augmentation of v5.0: scale of the image, and whether it is flipped left to right.
_VIEWS = ((1.0, False), (0.83, True), (0.67, False))
_PADDING_GREY = 0.447  # mean of ImageNet, as v5.0 pads here


class RawModel(Protocol):
    """A detector that gives raw heads: a `Detector`, or any runtime of deploy/."""

    anchors: Any
    strides: Any

    def __call__(self, images: Tensor) -> Sequence[Tensor]: ...


def predictor(model: RawModel) -> Predict:
    """The network followed by the decoding of its heads."""

    def predict(images: Tensor) -> Tensor:
        return decode_heads(model(images), model.anchors, model.strides)

    return predict


def ensemble(members: Sequence[Predict]) -> Predict:
    """Boxes of all members side by side; NMS then merges them."""

    def predict(images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in members], 1)

    return predict


def augmented(predict: Predict, stride: int) -> Predict:
    """Test-time augmentation: boxes of the image at three scales, the middle one flipped, side by side.

    Args:
        predict: Of the plain network.
        stride: Scaled images are padded to a multiple of it.
    """

    def predict_views(images: Tensor) -> Tensor:
        views = []
        for scale, is_flipped in _VIEWS:
            view = _scaled(images.flip(3) if is_flipped else images, scale, stride=stride)
            decoded = predict(view)
            boxes = decoded[..., :4] / scale
            if is_flipped:
                centre_x = images.shape[3] - boxes[..., :1]
                boxes = torch.cat((centre_x, boxes[..., 1:]), -1)
            views.append(torch.cat((boxes, decoded[..., 4:]), -1))
        return torch.cat(views, 1)

    return predict_views


def _scaled(images: Tensor, scale: float, *, stride: int) -> Tensor:
    """Shrink (B, 3, H, W) images and pad them at the right and bottom to a multiple of the stride."""
    if scale == 1:
        return images
    height, width = (int(side * scale) for side in images.shape[2:])
    shrunk = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    to_height, to_width = (math.ceil(side * scale / stride) * stride for side in images.shape[2:])
    return F.pad(shrunk, (0, to_width - width, 0, to_height - height), value=_PADDING_GREY)
