"""Non-maximum suppression: torchvision's compiled operator, or our own code with the same results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.boxes.boxes import cxcywh_to_xyxy
from utils.boxes.torchvision_compat import compiled_nms
from utils.errors import ConfigError

# Most candidates per image that enter suppression, best first.
MAX_CANDIDATES = 30_000
# Candidates that our own suppression compares at a time.
_BLOCK = 256


def greedy_nms(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float, *, max_keep: int
) -> NDArray[np.int64]:
    """Return the indices of the kept boxes, best score first; drop a box whose IoU with a kept one exceeds `iou`.

    The boxes are processed block by block, to stop as soon as `max_keep` are found.

    Args:
        boxes: Boxes (N, 4) xyxy.
        scores: Scores (N,).
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
    """Return a mask (N, M), True where the IoU of two boxes exceeds `iou`; contiguous columns make it fast."""
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


def check_thresholds(*, conf: float, iou: float, max_det: int) -> None:
    """Refuse thresholds that suppression cannot take.

    Raises:
        ConfigError: A share is not between 0 and 1, or no box may be kept.
    """
    for name, value in (("conf", conf), ("iou", iou)):
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}: got {value}, expected 0 to 1")
    if max_det < 1:
        raise ConfigError(f"max_det: got {max_det}, expected at least 1")


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
    """Suppress overlapping boxes and return the kept boxes of each image, best first.

    Args:
        decoded: Boxes (B, N, 5 + nc): cx, cy, w, h in pixels, objectness, class probabilities.
        conf: Threshold of objectness and of score (objectness times class); lower boxes are dropped.
        iou: IoU above which the weaker of two boxes of one class is dropped.
        max_det: Most boxes per image.
        multi_label: Whether a prediction may give one box for every class above `conf` (as in evaluation), not only
            for its best class.
        agnostic: Whether to suppress across classes.
        classes: Class ids to keep; None keeps all.

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
    """Select the predictions (N, 5 + nc) above `conf`, as rows (n, 6) xyxy, score, class, best first."""
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
        # Each class is shifted to a separate region, so that one pass suppresses only within classes.
        boxes = boxes + label[:, None] * (boxes.max() - boxes.min().clamp(max=0) + 1)
    nms = compiled_nms()
    if nms is not None:
        return candidates[nms(boxes, scores, iou)[:max_det]]
    kept = greedy_nms(boxes.cpu().numpy(), scores.cpu().numpy(), iou, max_keep=max_det)
    return candidates[torch.from_numpy(kept).to(candidates.device)]
