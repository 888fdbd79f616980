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
    """Count which class was predicted where which class is true.

    Boxes are paired whatever their classes, the largest overlap first, each box once.

    Args:
        predictions: One (n, 6) array per image: xyxy, score, class.
        truths: One (m, 5) array per image: class, xyxy.
        crowds: The same for crowd regions, in which a prediction of no object is left out.
        num_classes: K.
        conf: Predictions of a lower score are left out.
        iou: Smallest overlap of a pair.

    Returns:
        (K + 1, K + 1) int64 counts, rows predicted, columns true. The last row holds true boxes that were missed,
        the last column predictions where nothing is.
    """
    sure = [boxes[boxes[:, 4] >= conf] for boxes in predictions]
    predicted_class = np.concatenate([np.zeros(0), *(boxes[:, 5] for boxes in sure)]).astype(np.int64)
    true_class = np.concatenate([np.zeros(0), *(labels[:, 0] for labels in truths)]).astype(np.int64)
    pairs = overlaps(sure, truths, min_iou=iou, same_class=False)
    order = np.argsort(-pairs.iou, kind="stable")
    chosen = order[greedy_one_to_one(pairs.predicted[order], pairs.true[order])]

    # Each box starts as background of the other side; paired ones learn their partner's class.
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
