"""Several images combined into one: mosaics of four and nine, and mixup.

The canvas is twice the image size; a random warp then crops it to the image size. Boxes are (n, 5) float32 class,
x1, y1, x2, y2 in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from utils.datasets.augmenting.augment import PixelLabels
from utils.datasets.reading.images import FILL, Pixels

Tile = tuple[Pixels, PixelLabels]

# Parameter of the Beta distribution that mixup draws its share from.
_MIXUP_BETA = 8.0


def mosaic4(tiles: Sequence[Tile], *, img_size: int, rng: np.random.Generator) -> Tile:
    """Arrange four images around a random centre in the middle half of the canvas.

    Args:
        tiles: Four images, longer side `img_size`: left top, right top, left bottom, right bottom.
        img_size: Half the side of the canvas in pixels.
        rng: Generator that draws the centre.

    Returns:
        The canvas (2 s, 2 s, 3) and its boxes, clipped to it.
    """
    x, y = (int(value) for value in rng.uniform(img_size / 2, 1.5 * img_size, 2))
    corners = []
    for position, (image, _) in enumerate(tiles):
        height, width = image.shape[:2]
        corners.append((x - width if position % 2 == 0 else x, y - height if position < 2 else y))
    return _compose(tiles, corners, side=2 * img_size)


def mosaic9(tiles: Sequence[Tile], *, img_size: int, rng: np.random.Generator) -> Tile:
    """Arrange nine images, one in the middle and eight clockwise from the top, and crop a random 2 s x 2 s part.

    Args:
        tiles: Nine images, longer side `img_size`.
        img_size: Half the side of the canvas in pixels, s.
        rng: Generator that draws the part.

    Returns:
        The canvas (2 s, 2 s, 3) and its boxes, clipped to it.
    """
    crop_x, crop_y = (int(value) for value in rng.uniform(0, img_size, 2))
    corners = _spiral([image.shape[:2] for image, _ in tiles], img_size)
    return _compose(tiles, [(x - crop_x, y - crop_y) for x, y in corners], side=2 * img_size)


def _spiral(shapes: Sequence[tuple[int, ...]], s: int) -> list[tuple[int, int]]:
    """Return the left-top corners of nine tiles on a 3 s x 3 s canvas, each touching the one before.

    Args:
        shapes: Tile sizes (h, w): centre, top, right top, right, right bottom, bottom, left bottom, left, left top.
        s: Largest side of the centre tile, whose left-top corner is at (s, s).
    """
    heights, widths = zip(*shapes, strict=True)
    right, bottom = s + widths[0], s + heights[0]
    return [
        (s, s),
        (s, s - heights[1]),
        (s + widths[1], s - heights[2]),
        (right, s),
        (right, s + heights[3]),
        (right - widths[5], bottom),
        (right - widths[5] - widths[6], bottom),
        (s - widths[7], bottom - heights[7]),
        (s - widths[8], bottom - heights[7] - heights[8]),
    ]


def _compose(tiles: Sequence[Tile], corners: Sequence[tuple[int, int]], *, side: int) -> Tile:
    """Paste tiles with their left-top corners at (x, y) on a grey square; crop parts outside it."""
    canvas = np.full((side, side, 3), FILL, np.uint8)
    moved = []
    for (image, labels), (x, y) in zip(tiles, corners, strict=True):
        _paste(canvas, image, x, y)
        moved.append(labels + np.array([0, x, y, x, y], np.float32))
    labels = np.concatenate(moved)
    labels[:, 1:] = labels[:, 1:].clip(0, side)
    return canvas, labels


def _paste(canvas: Pixels, image: Pixels, x: int, y: int) -> None:
    height, width = image.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + width, canvas.shape[1]), min(y + height, canvas.shape[0])
    if right > left and bottom > top:
        canvas[top:bottom, left:right] = image[top - y : bottom - y, left - x : right - x]


def mixup(first: Tile, second: Tile, *, rng: np.random.Generator) -> Tile:
    """Blend two images of the same size, with a share from Beta(8, 8); keep the boxes of both with full weight.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; unlike in the paper, labels are not blended.
    """
    share = float(rng.beta(_MIXUP_BETA, _MIXUP_BETA))
    blended: Pixels = cv2.addWeighted(first[0], share, second[0], 1 - share, 0)
    return blended, np.concatenate([first[1], second[1]])
