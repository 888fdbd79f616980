from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.boxes.boxes import unletterbox
from utils.datasets.augmenting.letterbox import letterbox, letterbox_hw, pad_to, resize, resized_hw
from utils.datasets.reading.images import FILL


@pytest.mark.parametrize(
    ("original_hw", "img_size", "resized", "frame"),
    [
        ((480, 640), 640, (480, 640), (480, 640)),
        ((427, 640), 640, (427, 640), (448, 640)),
        ((333, 500), 640, (426, 640), (448, 640)),
        ((640, 480), 320, (320, 240), (320, 256)),
        ((1, 5000), 640, (1, 640), (32, 640)),
        ((1, 1), 64, (64, 64), (64, 64)),
    ],
)
def test_the_frame_is_the_least_multiple_of_the_stride(
    original_hw: tuple[int, int], img_size: int, resized: tuple[int, int], frame: tuple[int, int]
) -> None:
    assert resized_hw(original_hw, img_size) == resized
    assert letterbox_hw(original_hw, img_size, 32) == frame


def test_the_border_is_grey_and_an_odd_pixel_goes_right_and_below() -> None:
    framed, padding = pad_to(np.zeros((4, 7, 3), np.uint8), (9, 10))
    assert padding == (1, 2)
    assert (framed[2:6, 1:8] == 0).all()
    framed[2:6, 1:8] = FILL
    assert (framed == FILL).all()


def test_a_small_picture_is_enlarged_unless_told_otherwise() -> None:
    image = np.zeros((10, 20, 3), np.uint8)
    framed, scale, padding = letterbox(image, (64, 64))
    assert (framed.shape, scale, padding) == ((64, 64, 3), 3.2, (0, 16))
    framed, scale, padding = letterbox(image, (64, 64), scale_up=False)
    assert (framed.shape, scale, padding) == ((64, 64, 3), 1.0, (22, 27))


def test_a_picture_that_fits_is_not_copied() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    framed, scale, padding = letterbox(image, (64, 64))
    assert framed is image
    assert (scale, padding) == (1.0, (0, 0))


def test_smooth_shrinking_averages_pixels() -> None:
    stripes = np.zeros((4, 8, 3), np.uint8)
    stripes[:, 3::4] = 200
    smooth = resize(stripes, (1, 2), is_smooth=True)
    assert (smooth == 50).all()
    assert (resize(stripes, (1, 2)) != 50).any()


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([64, 96, 320]),
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_boxes_return_from_the_letterbox(height: int, width: int, img_size: int, corners: list[float]) -> None:
    new_hw = letterbox_hw((height, width), img_size)
    image = np.zeros((height, width, 3), np.uint8)
    framed, scale, (left, top) = letterbox(image, new_hw)
    assert framed.shape[:2] == new_hw
    assert max(new_hw) == img_size
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    box = np.array([[x1 * width, y1 * height, x2 * width, y2 * height]])
    moved = box * scale + np.array([left, top, left, top])
    back = unletterbox(moved, scale=scale, padding=(left, top), original_hw=(height, width))
    np.testing.assert_allclose(back, box, atol=1e-6)
    inner = framed.any(axis=2) & (framed[..., 0] == FILL)
    # What is not border is the picture: its size is within half a pixel of the scaled one, at least one pixel.
    assert abs((~inner).sum(0).max() - max(1, height * scale)) <= 0.5 + 1e-6
    assert abs((~inner).sum(1).max() - max(1, width * scale)) <= 0.5 + 1e-6
