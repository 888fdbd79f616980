"""How far a score would move on other images of the same kind: the bootstrap over images.

Images are drawn with replacement, as many as there are, and the score is computed again, many times; the interval
contains 95 % of these scores. It says nothing about other seeds of a training. Efron, "Bootstrap methods: another
look at the jackknife", Annals of Statistics 7, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.metrics.curves import NUM_RECALLS, right_predictions
from utils.metrics.matching import lie_in_crowds

Array = np.ndarray[Any, Any]
Interval = tuple[float, float]

DRAWS = 1000
# Bounds of the interval, as shares of the scores.
_BOUNDS = (0.025, 0.975)
# COCO's thresholds of IoU, and its most boxes of a class and an image.
_IOUS = np.linspace(0.5, 0.95, 10)
_MOST_BOXES = 100
_RECALLS = np.linspace(0, 1, NUM_RECALLS)


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """The boxes that a detector found in each image, and the true ones.

    Attributes:
        found: Boxes of each image (n, 6): xyxy, score, class.
        truths: True boxes of each image (m, 5): class, xyxy, in the same pixels.
        crowds: Crowd regions of each image (m, 5), in the same form.
    """

    found: list[Array]
    truths: list[Array]
    crowds: list[Array]


def draws(images: int, *, count: int = DRAWS, seed: int = 0) -> Array:
    """Return how often each image is drawn, (count, images) int64; a row sums to `images`."""
    return np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)


def interval(scores: Array) -> Interval:
    """Return the bounds that 95 % of the scores (count,) lie between; scores that are no numbers are left out."""
    low, high = np.nanquantile(scores, _BOUNDS)
    return float(low), float(high)


def accuracy_interval(accuracy: float, images: int, *, seed: int = 0) -> Interval:
    """Return the interval of an accuracy: drawing images with replacement is drawing rights and wrongs."""
    return interval(np.random.default_rng(seed).binomial(images, accuracy, size=DRAWS) / images)


def map_of_draws(boxes: Boxes, weights: Array) -> Array:
    """Compute mAP50-95 for each draw of images.

    Args:
        boxes: Boxes of all images.
        weights: How often each image counts, (D, images); a row of ones gives COCO's mAP.

    Returns:
        Scores (D,): means over IoUs and over the classes that the draw has true boxes of; NaN where it has none.
    """
    limited = [_most_certain(own) for own in boxes.found]
    image = np.repeat(np.arange(len(limited)), [len(own) for own in limited])
    rows = np.concatenate([np.zeros((0, 6)), *limited])
    ranked = np.argsort(-rows[:, 4], kind="stable")
    judged = list(_judged(limited, boxes))
    by_class = np.zeros((len(weights), 0))
    for class_id, num_true in _true_counts(boxes.truths):
        of_class = ranked[rows[ranked, 5] == class_id]
        masks = [(is_right[of_class], is_counted[of_class]) for is_right, is_counted in judged]
        own = [_mean_precision(masks, drawn[image[of_class]], total=int(drawn @ num_true)) for drawn in weights]
        by_class = np.column_stack([by_class, own])
    is_known = ~np.isnan(by_class)
    sums, counts = np.where(is_known, by_class, 0).sum(1), is_known.sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _most_certain(boxes: Array) -> Array:
    """Return the boxes (n, 6) of an image without those beyond COCO's limit for a class."""
    order = np.argsort(-boxes[:, 4], kind="stable")
    rank = np.zeros(len(boxes), np.int64)
    for class_id in np.unique(boxes[:, 5]):
        own = order[boxes[order, 5] == class_id]
        rank[own] = np.arange(len(own))
    return boxes[rank < _MOST_BOXES]


def _true_counts(truths: Sequence[Array]) -> Iterator[tuple[int, Array]]:
    """Yield each class that has true boxes, with their number in each image (images,)."""
    classes = np.concatenate([np.zeros(0), *(own[:, 0] for own in truths)])
    for class_id in np.unique(classes):
        yield int(class_id), np.array([(own[:, 0] == class_id).sum() for own in truths])


def _judged(found: Sequence[Array], boxes: Boxes) -> Iterator[tuple[Array, Array]]:
    """Yield for each IoU which boxes are right, (N,), and which count at all: those in crowds do not."""
    for iou in _IOUS:
        is_right = right_predictions(found, boxes.truths, min_iou=float(iou))
        yield is_right, is_right | ~lie_in_crowds(found, boxes.crowds, min_share=float(iou), same_class=True)


def _mean_precision(masks: Sequence[tuple[Array, Array]], drawn: Array, *, total: int) -> float:
    """Compute the average precision of one class in one draw, mean over IoUs; NaN without a true box.

    Args:
        masks: Which of the n boxes of the class, best score first, are right, and which count, for each IoU.
        drawn: How often each of these boxes counts, (n,).
        total: Number of true boxes in the draw.
    """
    if not total:
        return math.nan
    return float(np.mean([_average_precision(*own, drawn, total=total) for own in masks]))


def _average_precision(is_right: Array, is_counted: Array, drawn: Array, *, total: int) -> float:
    """Compute the mean over 101 recalls of the best precision at that recall or a higher one."""
    # Only at right boxes can the precision be higher than at the box before.
    right = np.flatnonzero(is_right)
    if not len(right):
        return 0.0
    found = np.cumsum(drawn[right])
    precision = found / np.maximum(np.cumsum(drawn * is_counted)[right], 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / total, _RECALLS, side="left")
    return float(envelope[at[at < len(envelope)]].sum()) / NUM_RECALLS
