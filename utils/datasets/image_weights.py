"""Weights of classes and images, for drawing images with rare classes more often (--image-weights)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from utils.datasets.labels import Labels
from utils.datasets.sampler import Weights


def class_counts(labels: Sequence[Labels], num_classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Boxes of each class in each image, (N, num_classes)."""
    counts = [np.bincount(boxes[:, 0].astype(np.int64), minlength=num_classes) for boxes in labels]
    return np.array(counts, np.int64).reshape(-1, num_classes)


def labels_to_class_weights(labels: Sequence[Labels], num_classes: int) -> Weights:
    """Inverse frequency of each class, (num_classes,), summing to 1; a class without boxes counts as one box."""
    total = class_counts(labels, num_classes).sum(0)
    weights = 1.0 / np.maximum(total, 1)
    normalised: Weights = weights / weights.sum()
    return normalised


def image_weights(labels: Sequence[Labels], class_weights: Weights) -> Weights:
    """Sum of the class weights of each image's boxes, (N,).

    v5.0 passes class weights * (1 - mAP of the class)^2, so that images with what is learned badly come more often.
    If no image has a box of a class that counts, all images weigh the same.
    """
    counts = class_counts(labels, len(class_weights)).astype(np.float64)
    weights: Weights = counts @ np.asarray(class_weights, np.float64)
    return weights if weights.sum() > 0 else np.ones(len(labels))
