"""Intervals over images: COCO's mAP for the images as they are, known answers for draws, and width by the sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny import label_index

from utils.metrics.bootstrap import Boxes, accuracy_interval, draws, interval, map_of_draws
from utils.metrics.coco import evaluate_coco
from utils.metrics.ground_truth import detection_rows, ground_truth_from_index, true_boxes

Array = np.ndarray[Any, Any]

BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]
NOTHING = np.zeros((0, 5))


def found(*rows: list[float]) -> Array:
    return np.array(rows, np.float64).reshape(-1, 6)


def two_images() -> Boxes:
    """Class 0 is found in the first image and missed in the second."""
    truth = np.array([[0, *BOX]])
    return Boxes(found=[found([*BOX, 0.9, 0]), found()], truths=[truth, truth], crowds=[NOTHING, NOTHING])


def test_draws_of_images_count_as_often_as_they_are_drawn() -> None:
    scores = map_of_draws(two_images(), np.array([[1, 1], [2, 0], [0, 2], [3, 1]]))
    # Recalls up to one half, and up to three quarters, have precision 1.
    assert scores == pytest.approx([51 / 101, 1, 0, 76 / 101])


def test_class_that_a_draw_has_no_box_of_does_not_count_there() -> None:
    boxes = two_images()
    other = np.array([[1, *FAR]])
    boxes = Boxes(found=boxes.found, truths=[boxes.truths[0], other], crowds=boxes.crowds)
    scores = map_of_draws(boxes, np.array([[1, 1], [1, 0], [0, 1], [0, 0]]))
    assert scores[:3] == pytest.approx([0.5, 1, 0])
    assert np.isnan(scores[3])


def test_box_in_a_crowd_is_neither_right_nor_wrong() -> None:
    truth, crowd = np.array([[0, *BOX]]), np.array([[0, 40, 40, 80, 80]])
    inside = found([*FAR, 0.95, 0], [*BOX, 0.9, 0])
    alone = Boxes(found=[inside], truths=[truth], crowds=[NOTHING])
    with_crowd = Boxes(found=[inside], truths=[truth], crowds=[crowd])
    once = np.ones((1, 1), np.int64)
    assert map_of_draws(alone, once) == pytest.approx([0.5])
    assert map_of_draws(with_crowd, once) == pytest.approx([1.0])


def random_boxes(rng: np.random.Generator, *, images: int) -> tuple[Any, Boxes]:
    """Two classes, up to 150 boxes of an image, some beside a true box; crowds in every third image."""
    labels, crowds, guesses = [], [], []
    for number in range(images):
        count = int(rng.integers(0, 12))
        centres, sizes = rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.05, 0.3, (count, 2))
        own = np.column_stack([rng.integers(0, 2, count), centres, sizes])
        labels.append(own)
        crowds.append(np.array([[0, 0.5, 0.5, 0.4, 0.4]]) if number % 3 == 0 else np.zeros((0, 5)))
        near = own[rng.integers(0, count, 150)] if count else np.zeros((0, 5))
        moved = near[:, 1:] * 200 + rng.normal(0, 6, (len(near), 4))
        corners = np.column_stack([moved[:, :2] - moved[:, 2:].clip(4) / 2, moved[:, :2] + moved[:, 2:].clip(4) / 2])
        guesses.append(np.column_stack([corners, rng.uniform(0, 1, len(near)), near[:, 0]]))
    index = label_index(labels, shapes_hw=[(200, 200)] * images, names=("a", "b"), crowds=crowds)
    truths, regions = true_boxes(index), true_boxes(index, crowds=True)
    return index, Boxes(found=guesses, truths=truths, crowds=regions)


@pytest.mark.parametrize("seed", range(3))
def test_images_as_they_are_have_the_map_of_coco(seed: int) -> None:
    index, boxes = random_boxes(np.random.default_rng(seed), images=9)
    rows = [
        detection_rows(own, image_id=number, category_ids=(0, 1))
        for own, number in zip(boxes.found, index.image_ids, strict=True)
    ]
    expected = evaluate_coco(ground_truth_from_index(index), np.concatenate(rows)).AP
    assert 0.05 < expected < 0.95
    assert map_of_draws(boxes, np.ones((1, 9), np.int64))[0] == pytest.approx(expected, abs=2e-4)


def test_nine_times_the_images_make_the_interval_a_third_and_it_contains_the_score() -> None:
    _, boxes = random_boxes(np.random.default_rng(1), images=8)
    widths = []
    for times in (1, 9):
        more = Boxes(found=times * boxes.found, truths=times * boxes.truths, crowds=times * boxes.crowds)
        low, high = interval(map_of_draws(more, draws(8 * times, count=300)))
        assert low < map_of_draws(more, np.ones((1, 8 * times), np.int64))[0] < high
        widths.append(high - low)
    assert 0.2 * widths[0] < widths[1] < 0.5 * widths[0]


def test_every_draw_has_as_many_images_and_the_same_seed_the_same_draws() -> None:
    drawn = draws(7, count=20)
    assert drawn.shape == (20, 7)
    assert (drawn.sum(1) == 7).all()
    assert (drawn == draws(7, count=20)).all()
    assert (drawn != draws(7, count=20, seed=1)).any()


def test_interval_of_an_accuracy_is_that_of_its_standard_error() -> None:
    low, high = accuracy_interval(0.8, 400)
    # 1.96 * sqrt(.8 * .2 / 400) = .0392
    assert (low, high) == pytest.approx((0.7608, 0.8392), abs=0.006)
    assert accuracy_interval(1.0, 50) == (1.0, 1.0)
