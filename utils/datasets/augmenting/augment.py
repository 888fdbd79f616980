"""Random changes of one image and its boxes: colour, affine and perspective warp, flips.

Semantics of v5.0. Images are (H, W, 3) uint8; boxes are (n, 5) float32 class, x1, y1, x2, y2 in pixels. Every
random number comes from the generator passed in, so a sample can be reproduced bit by bit.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from utils.config.hyp import Hyp
from utils.datasets.reading.images import FILL, Pixels

# (n, 5): class, x1, y1, x2, y2 in pixels.
PixelLabels = np.ndarray[Any, np.dtype[np.float32]]
Matrix = np.ndarray[Any, np.dtype[np.float64]]

# A box is dropped when the warp leaves it thinner than this many pixels,
_MIN_SIDE = 2.0
# more elongated than this,
_MAX_ASPECT = 20.0
# or with less than this share of its scaled area inside the image.
_MIN_AREA_SHARE = 0.1
_EPS = 1e-16


def random_hsv(image: Pixels, *, hyp: Hyp, rng: np.random.Generator) -> Pixels:
    """Multiply hue, saturation and value by random gains 1 +- hsv_h, hsv_s, hsv_v, through look-up tables."""
    gains = rng.uniform(-1, 1, 3) * (hyp.hsv_h, hyp.hsv_s, hyp.hsv_v) + 1
    if (gains == 1).all():
        return image
    levels = np.arange(256)
    tables = np.stack(
        [
            (levels * gains[0]) % 180,  # OpenCV's hue is a circle of 180 steps
            (levels * gains[1]).clip(0, 255),
            (levels * gains[2]).clip(0, 255),
        ],
        axis=-1,
    )
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    changed: Pixels = cv2.cvtColor(cv2.LUT(hsv, tables.astype(np.uint8)[None]), cv2.COLOR_HSV2RGB)
    return changed


def random_flips(
    image: Pixels, labels: PixelLabels, *, hyp: Hyp, rng: np.random.Generator
) -> tuple[Pixels, PixelLabels]:
    """Mirror upside down with probability `flipud`, and left to right with probability `fliplr`."""
    height, width = image.shape[:2]
    if rng.random() < hyp.flipud:
        image = cv2.flip(image, 0)
        labels = labels.copy()
        labels[:, [2, 4]] = height - labels[:, [4, 2]]
    if rng.random() < hyp.fliplr:
        image = cv2.flip(image, 1)
        labels = labels.copy()
        labels[:, [1, 3]] = width - labels[:, [3, 1]]
    return image, labels


def random_warp(
    image: Pixels, labels: PixelLabels, *, hyp: Hyp, out_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[Pixels, PixelLabels]:
    """Rotate, scale, shear, shift and tilt an image about its centre into a frame of `out_hw`.

    A canvas larger than the frame, such as a mosaic, is cropped to it; uncovered parts are grey.

    Returns:
        The frame (out_h, out_w, 3), and the boxes that `is_kept` accepts, clipped to it.
    """
    matrix, scale = random_matrix(image.shape[:2], hyp=hyp, out_hw=out_hw, rng=rng)
    if image.shape[:2] == out_hw and np.array_equal(matrix, np.eye(3)):
        return image, labels
    return warp_image(image, matrix, out_hw=out_hw), warp_labels(labels, matrix, out_hw=out_hw, scale=scale)


def random_matrix(
    in_hw: tuple[int, ...], *, hyp: Hyp, out_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[Matrix, float]:
    """Draw a random warp from a canvas of `in_hw` to a frame of `out_hw`.

    Returns:
        The (3, 3) matrix on (x, y, 1) in pixels, where pixel i covers [i, i + 1), and the scale in it.
    """
    centre, tilt, shear, shift = np.eye(3), np.eye(3), np.eye(3), np.eye(3)
    centre[:2, 2] = -in_hw[1] / 2, -in_hw[0] / 2
    tilt[2, :2] = rng.uniform(-hyp.perspective, hyp.perspective, 2)
    angle = math.radians(rng.uniform(-hyp.degrees, hyp.degrees))
    scale = rng.uniform(1 - hyp.scale, 1 + hyp.scale)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shear[[0, 1], [1, 0]] = np.tan(np.radians(rng.uniform(-hyp.shear, hyp.shear, 2)))
    shares = rng.uniform(0.5 - hyp.translate, 0.5 + hyp.translate, 2)
    shift[:2, 2] = shares * (out_hw[1], out_hw[0])
    return shift @ shear @ turn @ tilt @ centre, scale


def warp_image(image: Pixels, matrix: Matrix, *, out_hw: tuple[int, int]) -> Pixels:
    """Warp an image by a (3, 3) matrix into a frame of `out_hw`, with linear interpolation."""
    # OpenCV puts integer coordinates at pixel centres, the boxes put them at pixel edges.
    to_edges, to_centres = np.eye(3), np.eye(3)
    to_edges[:2, 2], to_centres[:2, 2] = 0.5, -0.5
    centred = to_centres @ matrix @ to_edges
    size, border = (out_hw[1], out_hw[0]), (FILL, FILL, FILL)
    warped: Pixels
    if np.array_equal(matrix[2], (0, 0, 1)):
        warped = cv2.warpAffine(image, centred[:2], size, borderValue=border)
    else:
        warped = cv2.warpPerspective(image, centred, size, borderValue=border)
    return warped


def warp_labels(labels: PixelLabels, matrix: Matrix, *, out_hw: tuple[int, int], scale: float) -> PixelLabels:
    """Warp boxes: take the upright rectangle around each warped box, clip it, and drop those not worth learning.

    Args:
        labels: Boxes (n, 5) class, x1, y1, x2, y2 in pixels of the canvas.
        matrix: Warp (3, 3).
        out_hw: Height and width of the frame.
        scale: Scale in the matrix; the remaining area of a box is compared with its scaled area.
    """
    if not len(labels):
        return labels
    corners = np.ones((len(labels) * 4, 3))
    corners[:, :2] = labels[:, [1, 2, 3, 4, 1, 4, 3, 2]].reshape(-1, 2)
    corners = corners @ matrix.T
    points = (corners[:, :2] / corners[:, 2:]).reshape(-1, 4, 2)
    boxes = np.concatenate([points.min(1), points.max(1)], axis=1)
    boxes[:, [0, 2]] = boxes[:, [0, 2]].clip(0, out_hw[1])
    boxes[:, [1, 3]] = boxes[:, [1, 3]].clip(0, out_hw[0])
    kept = is_kept(labels[:, 1:] * scale, boxes)
    return np.concatenate([labels[kept, :1], boxes[kept].astype(np.float32)], axis=1)


def is_kept(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which boxes are still worth learning after a warp.

    Args:
        before: Boxes (n, 4) xyxy, in the scale of the result but not clipped.
        after: Boxes (n, 4) xyxy, clipped to the border.

    Returns:
        Mask (n,), True where both sides are over 2 px, the longer is under 20 times the shorter, and over 10 % of
        the area remains.
    """
    sides_before = before[:, 2:] - before[:, :2]
    sides = after[:, 2:] - after[:, :2]
    aspect = sides.max(1) / (sides.min(1) + _EPS)
    share = sides.prod(1) / (sides_before.prod(1) + _EPS)
    kept: np.ndarray[Any, np.dtype[np.bool_]] = (
        (sides > _MIN_SIDE).all(1) & (aspect < _MAX_ASPECT) & (share > _MIN_AREA_SHARE)
    )
    return kept
