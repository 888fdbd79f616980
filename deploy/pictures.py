"""Conversion of every kind of image that users pass in to one kind of array."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from utils.datasets.reading.images import eight_bits, read_image, rgb_from_pil
from utils.errors import DataError

Picture: TypeAlias = str | Path | np.ndarray[Any, Any] | Image.Image


def as_rgb(picture: Picture) -> tuple[np.ndarray[Any, Any], str | None]:
    """Read or convert an image.

    Args:
        picture: Path of a file, PIL image of any mode (EXIF rotation is applied), or array: (H, W) grey, (H, W, 3)
            RGB or (H, W, 4) RGBA, uint8 or uint16. Convert OpenCV's BGR arrays to RGB first.

    Returns:
        Image (H, W, 3) uint8 RGB, and its path if there is one.

    Raises:
        DataError: The file cannot be read, or the value is not an image.
    """
    if isinstance(picture, str | Path):
        return read_image(picture), str(picture)
    if isinstance(picture, Image.Image):
        path = getattr(picture, "filename", "") or None
        return _from_pil(picture), path
    if isinstance(picture, np.ndarray):
        return _from_array(picture), None
    raise DataError(f"got {type(picture).__name__}; expected a path, a numpy array or a PIL image")


def _from_pil(picture: Image.Image) -> np.ndarray[Any, Any]:
    try:
        return rgb_from_pil(ImageOps.exif_transpose(picture))
    except (OSError, ValueError) as error:
        name = getattr(picture, "filename", "") or f"of mode {picture.mode}"
        raise DataError(f"PIL image {name} cannot be used: {error}") from error


def _from_array(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if picture.dtype == np.uint16:
        picture = eight_bits(picture)
    if picture.ndim == 2:
        picture = picture[..., None]
    is_image = picture.ndim == 3 and picture.shape[2] in (1, 3, 4) and picture.size > 0
    if picture.dtype != np.uint8 or not is_image:
        raise DataError(
            f"array is {picture.dtype} {picture.shape}; expected uint8 (H, W, 3) RGB, "
            "such as (255 * image).astype('uint8') or image.transpose(1, 2, 0)"
        )
    if picture.shape[2] == 4:
        return rgb_from_pil(Image.fromarray(picture))
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))
