"""Anchors are judged and replaced."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.losses.autoanchor import best_possible_recall, box_sizes, check_anchors, search_anchors


def index_of(sizes: list[tuple[float, float]]) -> Any:
    labels = np.array([[0, 0.5, 0.5, w, h] for w, h in sizes], np.float32)
    return SimpleNamespace(labels=(labels,), shapes_hw=np.array([[100, 200]]))


def test_sizes_are_in_pixels_of_the_training_image() -> None:
    assert box_sizes(index_of([(0.5, 0.5)]), 400).tolist() == [[200.0, 100.0]]


def test_recall_counts_boxes_within_the_ratio() -> None:
    sizes = np.array([[10.0, 10.0], [39.0, 10.0], [41.0, 10.0]])
    assert best_possible_recall(sizes, np.array([[10.0, 10.0]]), 4.0) == pytest.approx(2 / 3)


def test_fitting_anchors_stay() -> None:
    rng = np.random.default_rng(0)
    index = index_of([(s, s) for s in rng.uniform(0.1, 0.12, 50)])
    anchors = np.full((2, 3, 2), 40.0)
    assert check_anchors(index, anchors, img_size=640, anchor_t=4.0) is None


def test_bad_anchors_are_replaced_by_ones_that_match_nearly_all_boxes() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(0.2), np.log(0.9), (200, 2)))
    index = index_of([tuple(row) for row in sizes])
    found = check_anchors(index, np.full((2, 3, 2), 4.0), img_size=640, anchor_t=4.0)
    assert found is not None
    assert best_possible_recall(box_sizes(index, 640), found.reshape(-1, 2), 4.0) > 0.99
    assert (np.diff(found.reshape(-1, 2).prod(1)) >= 0).all()


def test_search_is_repeatable() -> None:
    sizes = np.random.default_rng(1).uniform(5, 50, (40, 2))
    first, second = (
        search_anchors(sizes, num_anchors=3, anchor_t=4.0, rng=np.random.default_rng(7)) for _ in range(2)
    )
    assert np.array_equal(first, second)
