"""Letterbox: scale an image evenly, centre it in a frame and fill the border with grey."""

from __future__ import annotations

import math

import cv2

from utils.datasets.reading.images import FILL, Pixels


def resized_hw(original_hw: tuple[int, int], img_size: int) -> tuple[int, int]:
    """Return height and width after resizing the longer side to `img_size`.

    v5.0 truncates here and rounds in its letterbox; one rule keeps boxes within half a pixel of `original * scale`
    on both axes.
    """
    return scaled_hw(original_hw, img_size / max(original_hw))


def scaled_hw(original_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return height and width times `scale`, rounded to the nearest pixel, at least 1."""
    return max(1, round(original_hw[0] * scale)), max(1, round(original_hw[1] * scale))


def scale_into(original_hw: tuple[int, int], frame_hw: tuple[int, int]) -> float:
    """Return the scale, in frame pixels per original pixel, at which an image just fits into a frame."""
    return min(frame_hw[0] / original_hw[0], frame_hw[1] / original_hw[1])


def letterbox_hw(original_hw: tuple[int, int], img_size: int, stride: int = 32) -> tuple[int, int]:
    """Return the smallest frame of multiples of `stride` that fits an image with longer side `img_size`."""
    height, width = resized_hw(original_hw, img_size)
    return math.ceil(height / stride) * stride, math.ceil(width / stride) * stride


def resize(image: Pixels, new_hw: tuple[int, int], *, is_smooth: bool = False) -> Pixels:
    """Resize to height and width `new_hw`; return the image itself if it already has them.

    Args:
        image: Pixels (H, W, 3) uint8.
        new_hw: Height and width of the result.
        is_smooth: Whether to average pixels when shrinking, as v5.0 does without augmentation; else linear.
    """
    if image.shape[:2] == new_hw:
        return image
    is_smaller = new_hw[0] < image.shape[0] or new_hw[1] < image.shape[1]
    interpolation = cv2.INTER_AREA if is_smooth and is_smaller else cv2.INTER_LINEAR
    resized: Pixels = cv2.resize(image, (new_hw[1], new_hw[0]), interpolation=interpolation)
    return resized


def pad_to(image: Pixels, new_hw: tuple[int, int]) -> tuple[Pixels, tuple[int, int]]:
    """Centre an image in a grey frame that is at least as large.

    Returns:
        The frame (H, W, 3), and the left and top border in pixels. An odd pixel is added on the right and below.
    """
    missing_h, missing_w = new_hw[0] - image.shape[0], new_hw[1] - image.shape[1]
    left, top = missing_w // 2, missing_h // 2
    if missing_h == 0 and missing_w == 0:
        return image, (0, 0)
    border = (top, missing_h - top, left, missing_w - left)
    framed: Pixels = cv2.copyMakeBorder(image, *border, cv2.BORDER_CONSTANT, value=(FILL, FILL, FILL))
    return framed, (left, top)


def letterbox(
    image: Pixels, new_hw: tuple[int, int], *, scale_up: bool = True, is_smooth: bool = False
) -> tuple[Pixels, float, tuple[int, int]]:
    """Scale an image evenly into a frame and fill the rest with grey (114).

    `letterbox(image, letterbox_hw(image.shape[:2], img_size, stride))` gives v5.0's smallest rectangle,
    `letterbox(image, (img_size, img_size))` the square.

    Args:
        image: Pixels (H, W, 3) uint8.
        new_hw: Height and width of the frame.
        scale_up: Whether to enlarge images smaller than the frame; else they are only centred.
        is_smooth: Whether to average pixels when shrinking.

    Returns:
        The frame (new_h, new_w, 3), frame pixels per original pixel, and the left and top border, so that
        x_letterboxed = x_original * scale + left.
    """
    height, width = image.shape[:2]
    scale = scale_into((height, width), new_hw)
    if not scale_up:
        scale = min(scale, 1.0)
    inner_hw = scaled_hw((height, width), scale)
    framed, padding = pad_to(resize(image, inner_hw, is_smooth=is_smooth), new_hw)
    return framed, scale, padding
