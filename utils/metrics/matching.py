"""Matching of predicted boxes to true boxes, for the curves and the confusion matrix.

The COCO metrics do not use it; the evaluation package does its own matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.boxes.boxes import box_iou

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Pairs of a predicted and a true box of the same image whose IoU reaches a threshold.

    Attributes:
        predicted: Rows (P,) in the concatenated predictions of all images.
        true: Rows (P,) in the concatenated true boxes of all images.
        iou: Intersection over union (P,).
    """

    predicted: Array
    true: Array
    iou: Array


def overlaps(predictions: Sequence[Array], truths: Sequence[Array], *, min_iou: float, same_class: bool) -> Overlaps:
    """Find all pairs within each image that overlap enough.

    Args:
        predictions: Boxes of each image (n, 6): xyxy, score, class.
        truths: True boxes of each image (m, 5): class, xyxy, in the same pixels.
        min_iou: Smallest IoU of a pair, 0 to 1.
        same_class: Whether both boxes must have the same class.
    """
    predicted, true, iou = [], [], []
    first_predicted = first_true = 0
    for boxes, labels in zip(predictions, truths, strict=True):
        if len(boxes) and len(labels):
            shared = box_iou(boxes[:, :4], labels[:, 1:])  # (n, m)
            if same_class:
                shared = np.where(boxes[:, 5:6] == labels[None, :, 0], shared, -1.0)
            rows, columns = np.nonzero(shared >= min_iou)
            predicted.append(rows + first_predicted)
            true.append(columns + first_true)
            iou.append(shared[rows, columns])
        first_predicted += len(boxes)
        first_true += len(labels)
    return Overlaps(
        predicted=np.concatenate([np.zeros(0, np.int64), *predicted]),
        true=np.concatenate([np.zeros(0, np.int64), *true]),
        iou=np.concatenate([np.zeros(0), *iou]),
    )


def lie_in_crowds(
    predictions: Sequence[Array], crowds: Sequence[Array], *, min_share: float, same_class: bool
) -> Array:
    """Return a mask (N,) over the concatenated predictions of all images: True inside a crowd region.

    As in COCO, such a box counts neither as right nor as wrong if it matches no single object.

    Args:
        predictions: Boxes of each image (n, 6): xyxy, score, class.
        crowds: Crowd regions of each image (m, 5): class, xyxy, in the same pixels.
        min_share: Smallest share of the predicted box that must lie in the region.
        same_class: Whether both must have the same class.
    """
    parts = [np.zeros(0, bool)]
    for boxes, regions in zip(predictions, crowds, strict=True):
        if not len(regions) or not len(boxes):
            parts.append(np.zeros(len(boxes), bool))
            continue
        low = np.maximum(boxes[:, None, :2], regions[None, :, 1:3])
        high = np.minimum(boxes[:, None, 2:4], regions[None, :, 3:5])
        area = (boxes[:, 2:4] - boxes[:, :2]).prod(1)
        share = (high - low).clip(0).prod(2) / np.maximum(area, 1e-9)[:, None]  # (n, m)
        inside = share >= min_share
        if same_class:
            inside &= boxes[:, 5:6] == regions[None, :, 0]
        parts.append(inside.any(1))
    return np.concatenate(parts)


def greedy_one_to_one(predicted: Array, true: Array) -> Array:
    """Choose pairs in their given order, each box at most once.

    The result is that of sequential greedy matching, computed in rounds: a pair that comes first both for its
    predicted and for its true box is chosen in any case, so all such pairs are chosen at once.

    Args:
        predicted: Predicted box of each pair (P,), most important pair first.
        true: True box of each pair (P,).

    Returns:
        Positions (Q,) of the chosen pairs, ascending.
    """
    open_pairs = np.arange(len(predicted))
    chosen = [np.zeros(0, np.int64)]
    while len(open_pairs):
        _, first_of_predicted = np.unique(predicted[open_pairs], return_index=True)
        _, first_of_true = np.unique(true[open_pairs], return_index=True)
        settled = open_pairs[np.intersect1d(first_of_predicted, first_of_true)]
        chosen.append(settled)
        taken = np.isin(predicted[open_pairs], predicted[settled]) | np.isin(true[open_pairs], true[settled])
        open_pairs = open_pairs[~taken]
    return np.sort(np.concatenate(chosen))
