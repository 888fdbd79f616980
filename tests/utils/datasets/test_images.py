from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from utils.datasets.reading.images import FILL, image_hw, read_image
from utils.errors import DataError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def two_colours() -> np.ndarray:
    """(20, 40, 3): left half red, right half green."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:] = RED, GREEN
    return pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_come_back_exactly_as_rgb(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(two_colours()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    np.testing.assert_array_equal(image, two_colours())
    assert image.flags.c_contiguous
    assert image_hw(path) == (20, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(two_colours()).save(path, exif=exif)
    with Image.open(path) as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    image = read_image(path)
    assert image.shape == expected.shape == ((40, 20, 3) if orientation >= 5 else (20, 40, 3))
    np.testing.assert_allclose(image.astype(int), expected.astype(int), atol=2)
    assert image_hw(path) == image.shape[:2]


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "g.png")
    image = read_image(tmp_path / "g.png")
    np.testing.assert_array_equal(image, np.arange(256).reshape(16, 16, 1).repeat(3, 2))


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "w.png")
    np.testing.assert_array_equal(read_image(tmp_path / "w.png")[0, :, 0], [0, 1, 128, 255])


def test_transparent_pixels_become_letterbox_grey(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "t.png")
    np.testing.assert_array_equal(read_image(tmp_path / "t.png"), [[RED, (FILL, FILL, FILL)]])


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    Image.fromarray(two_colours()).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), two_colours())


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    Image.fromarray(two_colours()).convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    image = read_image(tmp_path / "c.jpg").astype(int)
    np.testing.assert_allclose(image[10, 5], RED, atol=6)
    np.testing.assert_allclose(image[10, 35], GREEN, atol=6)


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_image(tmp_path / "one.png"), [[RED]])


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("read", [read_image, image_hw])
def test_a_truncated_file_is_a_data_error(tmp_path: Path, suffix: str, read) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        read(path)


def test_a_damaged_avif_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "a.avif"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 40] = bytes(40)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        read_image(path)


def test_a_pipe_is_a_data_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a.jpg cannot be read: it is a pipe"):
        read_image(tmp_path / "a.jpg")


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "trailer.jpg"
    Image.fromarray(two_colours()).save(path)
    path.write_bytes(path.read_bytes() + bytes(500))
    assert image_hw(path) == (20, 40)
    assert read_image(path).shape == (20, 40, 3)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_image_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"page.jpg cannot be read: it is not an image"):
        read_image(path)


def test_float_pixels_are_refused_with_a_remedy(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="save it with 8 or 16 bits"):
        read_image(tmp_path / "f.tif")


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "none.jpg")
