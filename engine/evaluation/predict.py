"""Predictors turn images into decoded boxes, by one network, an ensemble, or test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.boxes.decode import decode_heads

# Function from images (B, C, H, W), as a network takes them, to decoded boxes (B, N, 5 + nc), see
# utils.boxes.decode, or to logits (B, K).
Predict = Callable[[Tensor], Tensor]
# Views of v5.0's test-time augmentation: scale of the image, and whether it is flipped left to right.
_VIEWS = ((1.0, False), (0.83, True), (0.67, False))
_PADDING_GREY = 0.447  # mean of ImageNet, with which v5.0 pads here


class RawModel(Protocol):
    """A detector that returns raw heads: a `Detector`, or any runtime in deploy/."""

    anchors: Any
    strides: Any

    def __call__(self, images: Tensor) -> Sequence[Tensor]: ...


def predictor(model: RawModel) -> Predict:
    """Build a predictor that runs the network and decodes its heads."""

    def predict(images: Tensor) -> Tensor:
        return decode_heads(model(images), model.anchors, model.strides)

    return predict


def ensemble(members: Sequence[Predict]) -> Predict:
    """Build a predictor that concatenates the boxes of all members, for NMS to merge."""

    def predict(images: Tensor) -> Tensor:
        return torch.cat([member(images) for member in members], 1)

    return predict


def augmented(predict: Predict, stride: int) -> Predict:
    """Build a predictor with test-time augmentation: boxes at three scales, the middle one flipped, concatenated.

    Args:
        predict: Predictor without augmentation.
        stride: Pixels to a multiple of which scaled images are padded.
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
    """Shrink images (B, 3, H, W), and pad them at the right and bottom to a multiple of the stride."""
    if scale == 1:
        return images
    height, width = (int(side * scale) for side in images.shape[2:])
    shrunk = F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    to_height, to_width = (math.ceil(side * scale / stride) * stride for side in images.shape[2:])
    return F.pad(shrunk, (0, to_width - width, 0, to_height - height), value=_PADDING_GREY)
