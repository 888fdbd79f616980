from __future__ import annotations

import numpy as np
import pytest

from utils.datasets.augmenting.mosaic import _spiral, mixup, mosaic4, mosaic9
from utils.datasets.reading.images import FILL

SIZE = 64


def tile(number: int, hw: tuple[int, int] = (SIZE, SIZE)) -> tuple[np.ndarray, np.ndarray]:
    """A picture of one colour with one box over all of it."""
    image = np.full((*hw, 3), 10 + 20 * number, np.uint8)
    return image, np.array([[number, 0, 0, hw[1], hw[0]]], np.float32)


class FixedCentre:
    """Stands in for a generator: every uniform draw is `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        assert low <= self.value <= high
        return np.full(count, self.value)


def test_four_tiles_meet_at_the_centre() -> None:
    tiles = [tile(0), tile(1, (32, 64)), tile(2, (64, 32)), tile(3)]
    canvas, labels = mosaic4(tiles, img_size=SIZE, rng=FixedCentre(70.9))  # type: ignore[arg-type]
    assert canvas.shape == (2 * SIZE, 2 * SIZE, 3)
    expected = [[0, 6, 6, 70, 70], [1, 70, 38, 128, 70], [2, 38, 70, 70, 128], [3, 70, 70, 128, 128]]
    np.testing.assert_array_equal(labels, expected)
    for number, x1, y1, x2, y2 in expected:
        assert (canvas[y1:y2, x1:x2] == 10 + 20 * number).all()
    assert (canvas[:38, 70:] == FILL).all()
    assert (canvas[:6] == FILL).all()


def test_nine_tiles_of_one_size_make_a_square_grid() -> None:
    tiles = [tile(number) for number in range(9)]
    canvas, labels = mosaic9(tiles, img_size=SIZE, rng=FixedCentre(32))  # type: ignore[arg-type]
    # Clockwise from the top: 8 1 2 / 7 0 3 / 6 5 4, seen through a window that starts at (32, 32).
    rows = [[8, 1, 2], [7, 0, 3], [6, 5, 4]]
    seen = [[int(canvas[y, x, 0]) for x in (16, 64, 112)] for y in (16, 64, 112)]
    assert seen == [[10 + 20 * number for number in row] for row in rows]
    np.testing.assert_array_equal(labels[0], [0, 32, 32, 96, 96])
    np.testing.assert_array_equal(labels[8], [8, 0, 0, 32, 32])


def test_tiles_of_nine_sizes_do_not_overlap_the_middle_one() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        shapes = [tuple(rng.integers(20, 100, 2).tolist()) for _ in range(9)]
        (x0, y0), *others = _spiral(shapes, 100)
        for (h, w), (x, y) in zip(shapes[1:], others, strict=True):
            overlap_w = min(x + w, x0 + shapes[0][1]) - max(x, x0)
            overlap_h = min(y + h, y0 + shapes[0][0]) - max(y, y0)
            assert min(overlap_w, overlap_h) <= 0


@pytest.mark.parametrize(("mosaic", "count"), [(mosaic4, 4), (mosaic9, 9)])
def test_boxes_cover_their_colour(mosaic, count: int) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        tiles = [tile(number, tuple(rng.integers(20, SIZE + 1, 2).tolist())) for number in range(count)]
        canvas, labels = mosaic(tiles, img_size=SIZE, rng=rng)
        for number, *box in labels.astype(int).tolist():
            x1, y1, x2, y2 = box
            # A later tile may lie over the edge of an earlier one; no colour lies outside its box.
            outside = canvas[..., 0] == 10 + 20 * number
            outside[y1:y2, x1:x2] = False
            assert not outside.any()


def test_tiles_are_not_changed() -> None:
    tiles = [tile(number) for number in range(4)]
    mosaic4(tiles, img_size=SIZE, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(tiles[3][1], [[3, 0, 0, SIZE, SIZE]])


def test_mixup_blends_pixels_and_keeps_all_boxes() -> None:
    share = np.random.default_rng(5).beta(8, 8)
    blended, labels = mixup(tile(0), tile(4), rng=np.random.default_rng(5))
    np.testing.assert_allclose(blended[0, 0, 0], 10 * share + 90 * (1 - share), atol=0.51)
    assert labels[:, 0].tolist() == [0, 4]
