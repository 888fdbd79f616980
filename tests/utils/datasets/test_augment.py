from __future__ import annotations

import cv2
import numpy as np
import pytest

from utils.config.hyp import Hyp
from utils.datasets.augmenting.augment import (
    is_kept,
    random_flips,
    random_hsv,
    random_matrix,
    random_warp,
    warp_image,
    warp_labels,
)
from utils.datasets.reading.images import FILL

STILL = Hyp(hsv_h=0, hsv_s=0, hsv_v=0, translate=0, scale=0, fliplr=0, mosaic=0)
RED = (255, 0, 0)


def scene(side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A blue picture with one red rectangle, and its box."""
    image = np.full((side, side, 3), (0, 0, 255), np.uint8)
    image[40:70, 30:90] = RED
    return image, np.array([[1, 30, 40, 90, 70]], np.float32)


def red_box(image: np.ndarray) -> np.ndarray:
    """The upright rectangle around everything that is more red than not, xyxy."""
    ys, xs = np.nonzero((image[..., 0] > 128) & (image[..., 2] < 128))
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@pytest.mark.parametrize(
    "hyp",
    [
        Hyp(scale=0.3, translate=0.1),
        Hyp(degrees=30, scale=0.2, translate=0.05),
        Hyp(shear=15, scale=0.2, translate=0.05),
        Hyp(perspective=0.001, scale=0, translate=0.05),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_move_with_the_pixels(hyp: Hyp, seed: int) -> None:
    image, labels = scene()
    warped, moved = random_warp(image, labels, hyp=hyp, out_hw=(128, 128), rng=np.random.default_rng(seed))
    assert moved[0, 0] == 1
    np.testing.assert_allclose(moved[0, 1:], red_box(warped), atol=1.5)


@pytest.mark.parametrize("seed", range(4))
def test_flips_move_boxes_with_the_pixels(seed: int) -> None:
    image, labels = scene()
    hyp = Hyp(flipud=0.5, fliplr=0.5)
    flipped, moved = random_flips(image, labels, hyp=hyp, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(moved[0, 1:], red_box(flipped))
    np.testing.assert_array_equal(labels[0], [1, 30, 40, 90, 70])


def test_doubling_about_the_centre_moves_edges_exactly() -> None:
    image, labels = scene()
    matrix = np.array([[2.0, 0, -64], [0, 2, -64], [0, 0, 1]])
    moved = warp_labels(labels, matrix, out_hw=(128, 128), scale=2)
    np.testing.assert_array_equal(moved, [[1, 0, 16, 116, 76]])
    np.testing.assert_array_equal(red_box(warp_image(image, matrix, out_hw=(128, 128))), moved[0, 1:])


def test_no_strength_leaves_everything_as_it_is() -> None:
    image, labels = scene()
    rng = np.random.default_rng(0)
    warped, moved = random_warp(image, labels, hyp=STILL, out_hw=(128, 128), rng=rng)
    assert warped is image
    assert moved is labels
    assert random_hsv(image, hyp=STILL, rng=rng) is image


def test_a_canvas_is_cropped_to_its_centre() -> None:
    image, labels = scene()
    cropped, moved = random_warp(image, labels, hyp=STILL, out_hw=(64, 64), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(cropped, image[32:96, 32:96])
    np.testing.assert_array_equal(moved, [[1, 0, 8, 58, 38]])


def test_uncovered_parts_are_grey() -> None:
    image, _ = scene()
    matrix = np.array([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1.0]])
    assert (warp_image(image, matrix, out_hw=(128, 128))[70:] == FILL).all()


def test_the_matrix_stays_within_its_ranges() -> None:
    hyp = Hyp(scale=0.5, translate=0.1)
    drawn = [random_matrix((200, 200), hyp=hyp, out_hw=(100, 100), rng=np.random.default_rng(i)) for i in range(200)]
    scales = np.array([scale for _, scale in drawn])
    # The centre of the canvas lands within 10 % of the frame's centre.
    centres = np.array([(matrix @ (100, 100, 1))[:2] for matrix, _ in drawn])
    assert 0.5 <= scales.min() < 0.55
    assert 1.45 < scales.max() <= 1.5
    assert 40 <= centres.min() < 42
    assert 58 < centres.max() <= 60


@pytest.mark.parametrize(
    ("after", "kept"),
    [
        ((0, 0, 50, 50), True),
        ((0, 0, 2, 50), False),  # 2 px wide, more are needed
        ((0, 0, 100, 5), False),  # 20 times as long as high
        ((0, 0, 100, 5.5), False),  # 5.5 % of the area
        ((0, 0, 100, 10.5), True),
        ((0, 0, 30, 30), False),  # 9 % of the area
        ((0, 0, 0, 0), False),
    ],
)
def test_poor_boxes_are_dropped(after: tuple[float, ...], kept: bool) -> None:
    before = np.array([[0.0, 0, 100, 100]])
    assert is_kept(before, np.array([after])).tolist() == [kept]


def test_a_picture_without_boxes_warps() -> None:
    image, labels = scene()
    _, moved = random_warp(image, labels[:0], hyp=Hyp(), out_hw=(128, 128), rng=np.random.default_rng(0))
    assert moved.shape == (0, 5)


def test_value_gain_scales_brightness_only() -> None:
    image = np.full((2, 2, 3), (100, 50, 50), np.uint8)
    rng = np.random.default_rng(3)
    gain = np.random.default_rng(3).uniform(-1, 1, 3)[2] * 0.4 + 1
    changed = random_hsv(image, hyp=Hyp(hsv_h=0, hsv_s=0, hsv_v=0.4), rng=rng)
    np.testing.assert_allclose(changed[0, 0], np.array([100, 50, 50]) * gain, atol=1.5)


def test_hue_turns_within_its_circle() -> None:
    image = cv2.cvtColor(np.array([[[179, 200, 200]]], np.uint8), cv2.COLOR_HSV2RGB)
    hues = [
        cv2.cvtColor(
            random_hsv(image, hyp=Hyp(hsv_h=0.1, hsv_s=0, hsv_v=0), rng=np.random.default_rng(seed)),
            cv2.COLOR_RGB2HSV,
        )[0, 0, 0]
        for seed in range(20)
    ]
    assert all(hue >= 160 or hue <= 18 for hue in hues)
    assert any(hue <= 18 for hue in hues)
