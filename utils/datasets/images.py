"""Image files of every common kind, read as upright 8-bit RGB."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import DataError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
# Grey of letterbox borders; transparent pixels get it too, so that they look like border.
FILL = 114

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_EXIF_ORIENTATION = 0x0112
# What Pillow raises for a damaged file, beside OSError.
_DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# End markers; some writers pad the file after them.
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL_BYTES = 64


def read_image(path: str | Path) -> Pixels:
    """Read a picture as people see it.

    Grey becomes RGB, 16 bits become 8 (divided by 257), transparency is laid on the letterbox grey, CMYK is
    converted, EXIF rotation is applied; of an animation the first picture is taken.

    Returns:
        (H, W, 3) uint8, RGB, contiguous.

    Raises:
        DataError: The file is missing, no image, truncated, or of a kind that has no 8-bit meaning.
    """
    data = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = _orientation(image)
            pixels = _decode_fast(image, data)
            if pixels is None:
                pixels = rgb_from_pil(image)
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {_reason(error)}; replace or remove it") from error
    return np.ascontiguousarray(_upright(pixels, orientation))


def image_hw(path: str | Path) -> tuple[int, int]:
    """Height and width of a picture as people see it; only its header is decoded.

    Raises:
        DataError: The file is missing, no image, or truncated.
    """
    data = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            is_turned = _orientation(image) >= 5
            if not _has_end_marker(image, data):
                image.load()  # only decoding can tell a truncated file from one with something after its end
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {_reason(error)}; replace or remove it") from error
    return (width, height) if is_turned else (height, width)


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}; check the path") from error


def _reason(error: Exception) -> str:
    # Pillow's own words name a buffer in memory.
    return "it is no image" if isinstance(error, UnidentifiedImageError) else str(error)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 5 and more swap height and width."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _has_end_marker(image: Image.Image, data: bytes) -> bool:
    marker = _END_MARKERS.get(image.format or "")
    return marker is not None and marker in data[-_TAIL_BYTES:]


def _decode_fast(image: Image.Image, data: bytes) -> Pixels | None:
    """Decode with OpenCV, twice as fast as Pillow, what both decode alike; None for the rest."""
    # OpenCV shows a truncated file as half a picture, so files without their end marker go to Pillow.
    if image.mode not in ("RGB", "L") or not _has_end_marker(image, data):
        return None
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    decoded: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return decoded


def rgb_from_pil(image: Image.Image) -> Pixels:
    """(H, W, 3) uint8 RGB of a PIL image of any mode, as it lies; see `read_image` for the rules.

    Raises:
        ValueError: Its pixels are floats.
    """
    if image.mode.startswith("I"):
        # Pillow's own conversion to 8 bits clips instead of scaling.
        grey = eight_bits(np.asarray(image).clip(0, 65535))
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its pixels are floats; save it with 8 or 16 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (FILL, FILL, FILL, 255))
        return np.asarray(Image.alpha_composite(ground, layer).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def eight_bits(wide: np.ndarray[Any, Any]) -> Pixels:
    """16-bit values as 8-bit ones: divided by 257, so that 65535 becomes 255."""
    return ((wide.astype(np.int64) + 128) // 257).astype(np.uint8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 2-4 flip or turn, 5-8 also swap the axes."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
