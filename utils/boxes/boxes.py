"""Box algebra for numpy arrays and torch tensors.

Formats: `xyxy` corners, `cxcywh` centre and size, `ltwh` left-top corner and size. All functions return new values.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch

Boxes = TypeVar("Boxes", np.ndarray[Any, Any], torch.Tensor)


def _stack(columns: list[Any]) -> Any:
    if isinstance(columns[0], torch.Tensor):
        return torch.stack(columns, -1)
    return np.stack(columns, -1)


def xyxy_to_cxcywh(boxes: Boxes) -> Boxes:
    """Convert boxes (..., 4) from corners to centre and size."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])  # type: ignore[no-any-return]


def cxcywh_to_xyxy(boxes: Boxes) -> Boxes:
    """Convert boxes (..., 4) from centre and size to corners."""
    cx, cy, w, h = (boxes[..., i] for i in range(4))
    return _stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])  # type: ignore[no-any-return]


def xyxy_to_ltwh(boxes: Boxes) -> Boxes:
    """Convert boxes (..., 4) from corners to left, top, width, height (the COCO JSON format)."""
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _stack([x1, y1, x2 - x1, y2 - y1])  # type: ignore[no-any-return]


def ltwh_to_xyxy(boxes: Boxes) -> Boxes:
    """Convert boxes (..., 4) from left, top, width, height to corners."""
    x, y, w, h = (boxes[..., i] for i in range(4))
    return _stack([x, y, x + w, y + h])  # type: ignore[no-any-return]


def clip_boxes(boxes: Boxes, hw: tuple[int, int]) -> Boxes:
    """Clip (..., 4) xyxy boxes to an image of height and width `hw`."""
    h, w = hw
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return _stack([x1.clip(0, w), y1.clip(0, h), x2.clip(0, w), y2.clip(0, h)])  # type: ignore[no-any-return]


def box_iou(first: Boxes, second: Boxes) -> Boxes:
    """Return the intersection over union (N, M) of every pair of boxes (N, 4) and (M, 4) xyxy."""
    maximum: Any = torch.maximum if isinstance(first, torch.Tensor) else np.maximum
    minimum: Any = torch.minimum if isinstance(first, torch.Tensor) else np.minimum
    left_top = maximum(first[:, None, :2], second[None, :, :2])
    right_bottom = minimum(first[:, None, 2:4], second[None, :, 2:4])
    inner = (right_bottom - left_top).clip(0)
    overlap = inner[..., 0] * inner[..., 1]
    area_first = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    area_second = (second[:, 2] - second[:, 0]) * (second[:, 3] - second[:, 1])
    return overlap / (area_first[:, None] + area_second[None] - overlap + 1e-9)  # type: ignore[no-any-return]


def unletterbox(boxes: Boxes, *, scale: float, padding: tuple[float, float], original_hw: tuple[int, int]) -> Boxes:
    """Map boxes (N, 4) xyxy from letterboxed pixels back to the original image, clipped to it.

    Args:
        boxes: Boxes in pixels of the letterboxed image.
        scale: Letterboxed pixels per original pixel.
        padding: Left and top border in letterboxed pixels.
        original_hw: Height and width of the original image.
    """
    left, top = padding
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    moved = _stack([(x1 - left) / scale, (y1 - top) / scale, (x2 - left) / scale, (y2 - top) / scale])
    return clip_boxes(moved, original_hw)  # type: ignore[no-any-return]
