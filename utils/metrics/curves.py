"""Precision, recall and F1 over confidence, and precision over recall, at one IoU threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.metrics.matching import greedy_one_to_one, lie_in_crowds, overlaps

Array = np.ndarray[Any, Any]

NUM_CONFIDENCES = 1000
NUM_RECALLS = 101


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The curves of the C classes that have true boxes.

    Attributes:
        classes: Class ids (C,).
        confidence: Thresholds (1000,) from 0 to 1.
        precision: Share (C, 1000) of predictions at or above each threshold that are right; 1 if there are none.
        is_found: Mask (C, 1000) bool, True where the class has a prediction at or above the threshold.
        recall: Share (C, 1000) of true boxes found at or above each threshold.
        recall_grid: Recalls (101,) from 0 to 1.
        precision_at_recall: Best precision (C, 101) at that recall or a higher one (COCO's definition).
        num_true: Number of true boxes of each class (C,).
    """

    classes: Array
    confidence: Array
    precision: Array
    is_found: Array
    recall: Array
    recall_grid: Array
    precision_at_recall: Array
    num_true: Array

    @property
    def f1(self) -> Array:
        """Harmonic mean (C, 1000) of precision and recall."""
        total = self.precision + self.recall
        return np.asarray(2 * self.precision * self.recall / np.maximum(total, 1e-16))

    @property
    def ap(self) -> Array:
        """Average precision (C,) over 101 recalls at this IoU threshold."""
        return np.asarray(self.precision_at_recall.mean(1))

    def best(self) -> BestPoint:
        """Return the point at which the mean F1 over classes is highest.

        A class without predictions there counts with a precision of 0, as in v5.0.
        """
        if not len(self.classes):
            return BestPoint(precision=math.nan, recall=math.nan, f1=math.nan, confidence=math.nan)
        mean_f1 = self.f1.mean(0)
        at = int(mean_f1.argmax())
        is_found = self.is_found[:, at]
        return BestPoint(
            precision=float(np.where(is_found, self.precision[:, at], 0).mean()) if is_found.any() else math.nan,
            recall=float(self.recall[:, at].mean()),
            f1=float(mean_f1[at]),
            confidence=float(self.confidence[at]) if is_found.any() else math.nan,
        )


@dataclass(frozen=True, kw_only=True)
class BestPoint:
    """Means over classes at the confidence of the best mean F1, all in [0, 1].

    All are NaN if no class has true boxes; precision and confidence are also NaN if nothing was found.
    """

    precision: float
    recall: float
    f1: float
    confidence: float


def confidence_curves(
    predictions: Sequence[Array],
    truths: Sequence[Array],
    crowds: Sequence[Array] | None = None,
    *,
    min_iou: float = 0.5,
) -> Curves:
    """Match as COCO does (highest score first, each to its best free true box) and sweep the confidence.

    Args:
        predictions: Boxes of each image (n, 6): xyxy, score, class.
        truths: True boxes of each image (m, 5): class, xyxy.
        crowds: Crowd regions of each image (m, 5): class, xyxy; unmatched predictions inside are ignored.
        min_iou: Smallest IoU at which a prediction counts as right.
    """
    scores = np.concatenate([np.zeros(0), *(boxes[:, 4] for boxes in predictions)])
    predicted_class = np.concatenate([np.zeros(0), *(boxes[:, 5] for boxes in predictions)])
    true_class = np.concatenate([np.zeros(0), *(labels[:, 0] for labels in truths)])
    is_right = right_predictions(predictions, truths, min_iou=min_iou)
    if crowds is not None:
        is_counted = is_right | ~lie_in_crowds(predictions, crowds, min_share=min_iou, same_class=True)
        predicted_class = np.where(is_counted, predicted_class, -1.0)

    classes, num_true = np.unique(true_class.astype(np.int64), return_counts=True)
    confidence = np.linspace(0, 1, NUM_CONFIDENCES)
    recall_grid = np.linspace(0, 1, NUM_RECALLS)
    shape = (len(classes), NUM_CONFIDENCES)
    precision, recall, is_found = np.ones(shape), np.zeros(shape), np.zeros(shape, bool)
    precision_at_recall = np.zeros((len(classes), NUM_RECALLS))
    for row, (class_id, total) in enumerate(zip(classes, num_true, strict=True)):
        of_class = np.flatnonzero(predicted_class == class_id)
        order = of_class[np.argsort(-scores[of_class], kind="stable")]
        right = np.concatenate([[0], np.cumsum(is_right[order])])  # (n + 1,) right among the first i
        count = np.searchsorted(-scores[order], -confidence, side="right")
        precision[row] = np.where(count > 0, right[count] / np.maximum(count, 1), 1.0)
        is_found[row] = count > 0
        recall[row] = right[count] / total
        precision_at_recall[row] = _precision_at_recall(right[1:], total=int(total), grid=recall_grid)
    return Curves(
        classes=classes,
        confidence=confidence,
        precision=precision,
        is_found=is_found,
        recall=recall,
        recall_grid=recall_grid,
        precision_at_recall=precision_at_recall,
        num_true=num_true,
    )


def right_predictions(predictions: Sequence[Array], truths: Sequence[Array], *, min_iou: float) -> Array:
    """Return a mask (N,) of the concatenated predictions that find a true box of their class.

    The best score chooses first, and takes the free true box that it overlaps most.
    """
    scores = np.concatenate([np.zeros(0), *(boxes[:, 4] for boxes in predictions)])
    pairs = overlaps(predictions, truths, min_iou=min_iou, same_class=True)
    rank = np.empty(len(scores), np.int64)
    rank[np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    order = np.lexsort((-pairs.iou, rank[pairs.predicted]))
    chosen = order[greedy_one_to_one(pairs.predicted[order], pairs.true[order])]
    is_right = np.zeros(len(scores), bool)
    is_right[pairs.predicted[chosen]] = True
    return is_right


def _precision_at_recall(right: Array, *, total: int, grid: Array) -> Array:
    """Return the upper envelope of precision (101,) from the running count (n,) of right predictions."""
    if not len(right):
        return np.zeros(len(grid))
    precision = right / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(right / total, grid, side="left")
    return np.where(at < len(right), envelope[np.minimum(at, len(right) - 1)], 0.0)
