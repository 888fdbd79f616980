"""Anchors that fit the data: checked before training, replaced where they fit badly."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.datasets.index import LabelIndex

LOGGER = logging.getLogger(__name__)

Array = NDArray[Any]

# Below this share of boxes that some anchor can match, anchors are searched anew.
_ENOUGH_RECALL = 0.98
_GENERATIONS = 1000
_MUTATION_PROBABILITY = 0.9
_MUTATION_SIGMA = 0.1
_LEAST_SIDE = 2.0  # pixels; smaller boxes are noise


def box_sizes(index: LabelIndex, img_size: int) -> Array:
    """(N, 2) widths and heights in pixels of all boxes, with each image's longer side at `img_size`."""
    sizes = [
        labels[:, 3:5] * np.asarray(hw, float)[::-1] * (img_size / max(hw))
        for labels, hw in zip(index.labels, index.shapes_hw, strict=True)
    ]
    together = np.concatenate([np.zeros((0, 2)), *sizes])
    return together[(together >= _LEAST_SIDE).all(1)]


def best_possible_recall(sizes: Array, anchors: Array, anchor_t: float) -> float:
    """Share of boxes (N, 2) that differ by less than `anchor_t` from some anchor (A, 2) on both sides."""
    return float((_closeness(sizes, anchors) > 1 / anchor_t).mean())


def check_anchors(
    index: LabelIndex, anchors: Array, *, img_size: int, anchor_t: float, seed: int = 0
) -> Array | None:
    """Better anchors when those given fit the data badly, else None.

    Boxes are also counted at sizes drawn from +-10 %, as augmentation scales them.

    Args:
        index: The training boxes.
        anchors: (levels, A, 2) in pixels.
        img_size: Training size.
        anchor_t: Largest ratio of sides that matches.
        seed: Of the search.
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
        LOGGER.info("autoanchor: no better ones found, they stay")
        return None
    LOGGER.info("autoanchor: new anchors match %.2f %%: %s", better * 100, found.round(1).tolist())
    return found.reshape(levels, per_level, 2)


def search_anchors(sizes: Array, *, num_anchors: int, anchor_t: float, rng: np.random.Generator) -> Array:
    """K-means over box sizes, then a genetic search; (A, 2) in pixels, from small to large area.

    Args:
        sizes: (N, 2) widths and heights in pixels.
        num_anchors: A.
        anchor_t: Largest ratio of sides that matches.
        rng: Source of chance.
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
    """(N,) for the best anchor of each box: the worse of its two side ratios, 0 to 1."""
    ratio = sizes[:, None] / anchors[None]
    worst: Array = np.minimum(ratio, 1 / ratio).min(2).max(1)
    return worst


def _fitness(sizes: Array, anchors: Array, anchor_t: float) -> float:
    closeness = _closeness(sizes, anchors)
    return float((closeness * (closeness > 1 / anchor_t)).mean())


def _k_means(sizes: Array, k: int, rng: np.random.Generator, *, rounds: int = 30) -> Array:
    """Centres of `k` clusters, both sides measured in their own standard deviation."""
    spread = sizes.std(0) + 1e-9
    points = sizes / spread
    centres = points[rng.choice(len(points), k, replace=False)]
    for _ in range(rounds):
        nearest = ((points[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        moved = [points[nearest == i].mean(0) if (nearest == i).any() else centres[i] for i in range(k)]
        centres = np.stack(moved)
    result: Array = (centres * spread).clip(_LEAST_SIDE)
    return result
