"""Reader of image files of every common kind, as upright 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from utils.datasets.reading.folders import is_special_file
from utils.errors import DataError

# Grey of letterbox borders, and of transparent pixels, so that they look like border.
FILL = 114

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_EXIF_ORIENTATION = 0x0112
_DNG_VERSION = 0xC612
# Larger images are refused by their header: one of this size takes 0.75 GB when decoded.
_MAX_PIXELS = 256 * 2**20
# Images of more pixels are checked one at a time.
_LARGE_PIXELS = 32 * 2**20
_one_large_image = threading.Lock()
# Pillow's own limit is below ours, which is checked on every path.
Image.MAX_IMAGE_PIXELS = None
# Errors that Pillow raises for a damaged file.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, RuntimeError, struct.error, zlib.error)
_JPEG_FORMATS = ("JPEG", "MPO")
_JPEG_END = b"\xff\xd9"
# Words in libjpeg's warnings that part of the image is invented; its other warnings are harmless.
_JPEG_DAMAGE = ("premature end", "bad huffman", "corrupt data", "invalid progressive")
_INFLATE_BYTES = 2**20
_PNG_EXIF = (b"eXIf", b"Raw profile type")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Facts about an image file that decodes completely.

    Attributes:
        hw: Height and width of the image as displayed.
        orientation: EXIF orientation, 1 (upright) to 8; 5 and more swap height and width of the stored pixels.
        digest: Digest of the file, 16 bytes, equal for equal files.
    """

    hw: tuple[int, int]
    orientation: int
    digest: bytes


def read_image(path: str | Path, *, digest: bytes | None = None) -> Pixels:
    """Read an image as it is displayed.

    Grey becomes RGB, 16 bits become 8 (divided by 257), transparent pixels are blended with the letterbox grey, CMYK
    is converted, EXIF rotation is applied; the first frame of an animation is read. The content of a file decides its
    kind, not its name.

    Args:
        path: Image file.
        digest: Digest from `ImageFacts`; while the file has it, the search for damage that only `check_image` finds
            is skipped.

    Returns:
        Pixels (H, W, 3) uint8, RGB, contiguous.

    Raises:
        DataError: The file is missing, not an image, damaged, larger than 256 megapixels, or of a kind that has no
            8-bit meaning.
    """
    data = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_kind(image)
            orientation = _orientation(image, data)
            if digest is None or digest != _digest(data):
                _check_stream(image, data)
            pixels = _decode(image, data)
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {_reason(error)}; replace or remove it") from error
    return np.ascontiguousarray(_upright(pixels, orientation))


def check_image(path: str | Path) -> ImageFacts:
    """Check that `read_image` can read a file, at a fraction of its cost where the format allows it.

    Raises:
        DataError: `read_image` would fail.
    """
    data = _read_bytes(path)
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_kind(image)
            width, height = image.size
            orientation = _orientation(image, data)
            with _one_large_image if width * height > _LARGE_PIXELS else nullcontext():
                _check_pixels(image, data)
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {_reason(error)}; replace or remove it") from error
    hw = (width, height) if orientation >= 5 else (height, width)
    return ImageFacts(hw=hw, orientation=orientation, digest=_digest(data))


def image_hw(path: str | Path) -> tuple[int, int]:
    """Return height and width of an image as displayed.

    Raises:
        DataError: `read_image` would fail.
    """
    return check_image(path).hw


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _read_bytes(path: str | Path) -> bytes:
    if is_special_file(Path(path)):
        raise DataError(f"image {path} cannot be read: it is a pipe, socket or device; give a file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror}; check the path") from error


def _reason(error: Exception) -> str:
    # Pillow's own text names a buffer in memory.
    return "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)


def _check_kind(image: Image.Image) -> None:
    """Refuse an image that, by its header, is too large or has no 8-bit meaning."""
    width, height = image.size
    if width * height > _MAX_PIXELS:
        raise ValueError(f"it has {width} x {height} pixels, more than {_MAX_PIXELS >> 20} megapixels; scale it down")
    if image.format == "TIFF" and _DNG_VERSION in getattr(image, "tag_v2", {}):
        # Pillow reads only its small preview, which the boxes do not fit.
        raise ValueError("it is a camera's raw file; convert it to JPEG, PNG or TIFF")
    if image.mode == "F":
        raise ValueError("its pixels are floats; save it with 8 or 16 bits")


def _orientation(image: Image.Image, data: bytes) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; 5 and more swap height and width."""
    if image.format == "TIFF":
        return 1  # Pillow rotates these itself
    if image.format == "PNG" and not any(mark in data for mark in _PNG_EXIF):
        return 1  # skips `getexif`, for which Pillow would decode the whole PNG
    value = image.getexif().get(_EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_stream(image: Image.Image, data: bytes) -> None:
    """Raise an error for damage that decoding ignores silently."""
    if image.format == "PNG":
        _check_png(data)
    elif image.format in _JPEG_FORMATS and image.mode == "CMYK":
        _decode_jpeg(data, min_factor=8, colorspace="CMYK")


def _check_pixels(image: Image.Image, data: bytes) -> None:
    """Raise the errors that decoding would raise."""
    if image.format in _JPEG_FORMATS and image.mode in ("RGB", "L"):
        _decode_jpeg(data, min_factor=8)
    else:
        _check_stream(image, data)
        if image.format != "PNG":
            rgb_from_pil(image)


def _decode(image: Image.Image, data: bytes) -> Pixels:
    """Decode an opened image to (H, W, 3), as stored."""
    if image.format in _JPEG_FORMATS and image.mode in ("RGB", "L"):
        return _decode_jpeg(data, min_factor=1)
    if image.format == "PNG" and image.mode in ("RGB", "L"):
        # Twice as fast as Pillow, with equal pixels.
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if decoded is not None:
            return np.asarray(decoded, np.uint8)
    return rgb_from_pil(image)


def _decode_jpeg(data: bytes, *, min_factor: int, colorspace: str = "RGB") -> Pixels:
    """Decode a JPEG, at an eighth of its size with `min_factor` 8; refuse one with missing parts.

    libjpeg only warns of missing parts, and OpenCV and Pillow drop its warnings. A missing end marker alone is no
    damage: with one added, libjpeg reports whether anything before it is missing.
    """
    whole = data + _JPEG_END
    scale = {} if min_factor == 1 else {"min_height": 1, "min_width": 1, "min_factor": min_factor}
    try:
        decoded = simplejpeg.decode_jpeg(whole, colorspace=colorspace, **scale)
    except ValueError as error:
        if any(word in str(error).lower() for word in _JPEG_DAMAGE):
            raise ValueError(f"part of it is missing ({error})") from error
        decoded = simplejpeg.decode_jpeg(whole, colorspace=colorspace, strict=False, **scale)
    return np.asarray(decoded, np.uint8)


def _check_png(data: bytes) -> None:
    """Raise ValueError for a PNG whose chunks are truncated, fail their checksums, or contain too few pixels."""
    view, position, inflate = memoryview(data), len(_PNG_SIGNATURE), zlib.decompressobj()
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        if kind == b"IDAT":
            if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
                raise ValueError("part of it is damaged (a checksum is wrong)")
            _discard(inflate, view[position + 8 : end])
        elif kind == b"IEND":
            break
        position = end + 4
    if not inflate.eof:
        raise ValueError("part of it is missing")


def _discard(inflate: Any, chunk: memoryview) -> None:
    """Inflate a chunk piece by piece without keeping the output."""
    rest: Any = chunk
    while len(rest) and not inflate.eof:
        inflate.decompress(rest, _INFLATE_BYTES)
        rest = inflate.unconsumed_tail


def rgb_from_pil(image: Image.Image) -> Pixels:
    """Convert a PIL image of any mode to (H, W, 3) uint8 RGB, as stored; see `read_image` for the rules.

    Raises:
        ValueError: The pixels are floats.
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
    """Convert 16-bit values to 8-bit ones: divide by 257, so that 65535 becomes 255."""
    return ((wide.astype(np.int64) + 128) // 257).astype(np.uint8)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation: 2-4 flip or rotate, 5-8 also swap the axes."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
