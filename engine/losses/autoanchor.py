"""Checks before training how well the anchors fit the data, and searches for better ones if they fit badly."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.datasets.indexing.index import LabelIndex

LOGGER = logging.getLogger(__name__)

Array = NDArray[Any]

# New anchors are searched for if those given can match less than this share of the boxes.
_ENOUGH_RECALL = 0.98
_GENERATIONS = 1000
_MUTATION_PROBABILITY = 0.9
_MUTATION_SIGMA = 0.1
_LEAST_SIDE = 2.0  # pixels; smaller boxes are noise


def box_sizes(index: LabelIndex, img_size: int) -> Array:
    """Return the widths and heights (N, 2) of all boxes, in pixels, with each image's longer side at `img_size`."""
    sizes = [
        labels[:, 3:5] * np.asarray(hw, float)[::-1] * (img_size / max(hw))
        for labels, hw in zip(index.labels, index.shapes_hw, strict=True)
    ]
    together = np.concatenate([np.zeros((0, 2)), *sizes])
    return together[(together >= _LEAST_SIDE).all(1)]


def best_possible_recall(sizes: Array, anchors: Array, anchor_t: float) -> float:
    """Return the share of boxes (N, 2) whose sides differ from some anchor's (A, 2) by less than `anchor_t`."""
    return float((_closeness(sizes, anchors) > 1 / anchor_t).mean())


def check_anchors(
    index: LabelIndex, anchors: Array, *, img_size: int, anchor_t: float, seed: int = 0
) -> Array | None:
    """Search for better anchors if those given fit the data badly; return None if there are none or no need.

    Box sizes are varied by up to 10 % before counting, as augmentation scales them.

    Args:
        index: Training boxes.
        anchors: Anchors (levels, A, 2), in pixels.
        img_size: Training size in pixels.
        anchor_t: Upper limit of the ratio of sides of a match.
        seed: Seed of the search.
    """
    rng = np.random.default_rng(seed)
    sizes = box_sizes(index, img_size)
    levels, per_level = anchors.shape[:2]
    if len(sizes) < levels * per_level:
        LOGGER.warning("autoanchor: %d boxes are too few to judge %d anchors", len(sizes), levels * per_level)
        return None
    jittered = sizes * rng.uniform(0.9, 1.1, (len(sizes), 1))
    recall = best_possible_recall(jittered, anchors.reshape(-1, 2), anchor_t)
    LOGGER.info("autoanchor: the anchors can match %.2f %% of the boxes", recall * 100)
    if recall >= _ENOUGH_RECALL:
        return None
    found = search_anchors(sizes, num_anchors=levels * per_level, anchor_t=anchor_t, rng=rng)
    better = best_possible_recall(jittered, found, anchor_t)
    if better <= recall:
        LOGGER.info("autoanchor: no better anchors found; keeping them")
        return None
    LOGGER.info("autoanchor: new anchors match %.2f %%: %s", better * 100, found.round(1).tolist())
    return found.reshape(levels, per_level, 2)


def search_anchors(sizes: Array, *, num_anchors: int, anchor_t: float, rng: np.random.Generator) -> Array:
    """Search for anchors by k-means over box sizes, then by mutation; (A, 2) in pixels, ordered by area.

    Args:
        sizes: Widths and heights (N, 2), in pixels.
        num_anchors: Number of anchors, A.
        anchor_t: Upper limit of the ratio of sides of a match.
        rng: Random generator.
    """
    anchors = _k_means(sizes, num_anchors, rng)
    fitness = _fitness(sizes, anchors, anchor_t)
    for _ in range(_GENERATIONS):
        factors = 1 + rng.normal(0, _MUTATION_SIGMA, anchors.shape) * (
            rng.random(anchors.shape) < _MUTATION_PROBABILITY
        )
        mutated = (anchors * factors.clip(0.3, 3)).clip(_LEAST_SIDE)
        now = _fitness(sizes, mutated, anchor_t)
        if now > fitness:
            anchors, fitness = mutated, now
    ordered: Array = anchors[np.argsort(anchors.prod(1))]
    return ordered


def _closeness(sizes: Array, anchors: Array) -> Array:
    """Return, for the best anchor of each box, the worse of its two side ratios: (N,), 0 to 1."""
    ratio = sizes[:, None] / anchors[None]
    worst: Array = np.minimum(ratio, 1 / ratio).min(2).max(1)
    return worst


def _fitness(sizes: Array, anchors: Array, anchor_t: float) -> float:
    closeness = _closeness(sizes, anchors)
    return float((closeness * (closeness > 1 / anchor_t)).mean())


def _k_means(sizes: Array, k: int, rng: np.random.Generator, *, rounds: int = 30) -> Array:
    """Return the centres (k, 2) of `k` clusters; distances are in standard deviations of each side."""
    spread = sizes.std(0) + 1e-9
    points = sizes / spread
    centres = points[rng.choice(len(points), k, replace=False)]
    for _ in range(rounds):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        moved = [points[nearest == i].mean(0) if (nearest == i).any() else centres[i] for i in range(k)]
        centres = np.stack(moved)
    result: Array = (centres * spread).clip(_LEAST_SIDE)
    return result
