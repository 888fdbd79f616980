"""The confusion matrix of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.metrics.matching import greedy_one_to_one, lie_in_crowds, overlaps

Array = np.ndarray[Any, Any]


def confusion_matrix(
    predictions: Sequence[Array],
    truths: Sequence[Array],
    crowds: Sequence[Array] | None = None,
    *,
    num_classes: int,
    conf: float = 0.25,
    iou: float = 0.45,
) -> Array:
    """Count the pairs of predicted and true class.

    Boxes are paired whatever their classes, the largest overlap first, each box once.

    Args:
        predictions: Boxes of each image (n, 6): xyxy, score, class.
        truths: True boxes of each image (m, 5): class, xyxy.
        crowds: Crowd regions of each image (m, 5): class, xyxy; unpaired predictions inside are ignored.
        num_classes: Number of classes, K.
        conf: Score below which predictions are ignored.
        iou: Smallest IoU of a pair.

    Returns:
        Counts (K + 1, K + 1) int64, rows predicted, columns true. The last row contains true boxes that were missed,
        the last column predictions without a true box.
    """
    sure = [boxes[boxes[:, 4] >= conf] for boxes in predictions]
    predicted_class = np.concatenate([np.zeros(0), *(boxes[:, 5] for boxes in sure)]).astype(np.int64)
    true_class = np.concatenate([np.zeros(0), *(labels[:, 0] for labels in truths)]).astype(np.int64)
    pairs = overlaps(sure, truths, min_iou=iou, same_class=False)
    order = np.argsort(-pairs.iou, kind="stable")
    chosen = order[greedy_one_to_one(pairs.predicted[order], pairs.true[order])]

    # Each box starts paired with background; paired boxes then get their partner's class.
    partner_of_predicted = np.full(len(predicted_class), num_classes)
    partner_of_predicted[pairs.predicted[chosen]] = true_class[pairs.true[chosen]]
    is_missed = np.ones(len(true_class), bool)
    is_missed[pairs.true[chosen]] = False

    is_counted = np.ones(len(predicted_class), bool)
    if crowds is not None:
        is_counted = ~lie_in_crowds(sure, crowds, min_share=iou, same_class=False)
        is_counted[pairs.predicted[chosen]] = True
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (predicted_class[is_counted], partner_of_predicted[is_counted]), 1)
    matrix[num_classes, :num_classes] = np.bincount(true_class[is_missed], minlength=num_classes)
    return matrix
