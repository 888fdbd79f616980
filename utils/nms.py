"""Non-maximum suppression: torchvision's operator where it is compiled, ours with the same results elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes import cxcywh_to_xyxy
from utils.torchvision_compat import compiled_nms

# Candidates kept per image before suppression, best first.
MAX_CANDIDATES = 30_000
# Candidates compared with one another at a time by our own suppression.
_BLOCK = 256


def greedy_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float, *, max_keep: int
) -> NDArray[np.int64]:
    """Indices of the boxes kept, best score first; a box goes when its IoU with a kept one exceeds `iou`.

    Works block by block, so that it stops as soon as `max_keep` boxes are found.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        iou: Threshold in [0, 1].
        max_keep: Number of boxes after which to stop.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        if len(kept):
            block = block[~_overlap(boxes[block], boxes[kept], iou).any(1)]
        overlapping = _overlap(boxes[block], boxes[block], iou)
        alive = np.ones(len(block), dtype=bool)
        for i in range(len(block)):
            if alive[i]:
                alive[i + 1 :] &= ~overlapping[i, i + 1 :]
        kept = np.concatenate((kept, block[alive]))
        if len(kept) >= max_keep:
            break
    return kept[:max_keep]


def _overlap(first: NDArray[np.float32], second: NDArray[np.float32], iou: float) -> NDArray[np.bool_]:
    """(N, M): whether the IoU of two boxes exceeds `iou`. Side by side in memory, which numpy needs to be fast."""
    x1, y1, x2, y2 = np.ascontiguousarray(first.T)[:, :, None]
    u1, v1, u2, v2 = np.ascontiguousarray(second.T)[:, None, :]
    width = np.minimum(x2, u2)
    width -= np.maximum(x1, u1)
    height = np.minimum(y2, v2)
    height -= np.maximum(y1, v1)
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    width *= height
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - width
    exceeds: NDArray[np.bool_] = width > iou * union
    return exceeds


def non_max_suppression(
    decoded: Tensor,
    *,
    conf: float = 0.25,
    iou: float = 0.45,
    max_det: int = 300,
    multi_label: bool = False,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> list[Tensor]:
    """Boxes of each image, best first.

    Args:
        decoded: (B, N, 5 + nc): cx, cy, w, h in pixels, objectness, class probabilities.
        conf: Least objectness and least score (objectness times class) of a box.
        iou: Overlap above which the weaker of two boxes of one class goes.
        max_det: Most boxes per image.
        multi_label: A place may give one box for every class above `conf` (evaluation), not only its best.
        agnostic: Suppress across classes.
        classes: Keep only these class ids.

    Returns:
        B tensors (n, 6): x1, y1, x2, y2, score, class, on the device of `decoded`.
    """
    return [
        _suppress_image(
            _candidates(image, conf=conf, multi_label=multi_label, classes=classes),
            iou=iou,
            max_det=max_det,
            agnostic=agnostic,
        )
        for image in decoded.float()
    ]


def _candidates(image: Tensor, *, conf: float, multi_label: bool, classes: Sequence[int] | None) -> Tensor:
    """(N, 5 + nc) to (n, 6) xyxy, score, class: those above `conf`, best first."""
    image = image[image[:, 4] > conf]
    scores = image[:, 5:] * image[:, 4:5]
    if multi_label and scores.shape[1] > 1:
        place, label = (scores > conf).nonzero(as_tuple=True)
    else:
        best, label = scores.max(1) if len(scores) else (scores.sum(1), scores.sum(1).long())
        place = (best > conf).nonzero().squeeze(1)
        label = label[place]
    if classes is not None:
        wanted = torch.isin(label, torch.tensor(list(classes), device=label.device))
        place, label = place[wanted], label[wanted]
    score = scores[place, label]
    order = score.argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    place, label, score = place[order], label[order], score[order]
    xyxy = cxcywh_to_xyxy(image[place, :4])
    return torch.cat((xyxy, score[:, None], label[:, None].float()), 1)


def _suppress_image(candidates: Tensor, *, iou: float, max_det: int, agnostic: bool) -> Tensor:
    if not len(candidates):
        return candidates
    boxes, scores, label = candidates[:, :4], candidates[:, 4], candidates[:, 5]
    if not agnostic:
        # Moving each class to a place of its own lets one pass suppress within classes only.
        boxes = boxes + label[:, None] * (boxes.max() - boxes.min().clamp(max=0) + 1)
    nms = compiled_nms()
    if nms is not None:
        return candidates[nms(boxes, scores, iou)[:max_det]]
    kept = greedy_nms(boxes.cpu().numpy(), scores.cpu().numpy(), iou, max_keep=max_det)
    return candidates[torch.from_numpy(kept).to(candidates.device)]
