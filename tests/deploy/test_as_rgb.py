"""Every kind of picture becomes the same upright RGB array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.pictures import as_rgb
from utils.errors import DataError

RED = np.full((4, 6, 3), (200, 10, 30), np.uint8)


def test_path_is_read_and_remembered(tmp_path: Path) -> None:
    Image.fromarray(RED).save(tmp_path / "red.png")
    image, path = as_rgb(tmp_path / "red.png")
    assert (image == RED).all()
    assert path == str(tmp_path / "red.png")


def test_rgb_array_passes_unchanged_and_has_no_path() -> None:
    image, path = as_rgb(RED)
    assert (image == RED).all()
    assert path is None


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1)])
def test_grey_array_is_repeated_over_the_channels(shape: tuple[int, ...]) -> None:
    image, _ = as_rgb(np.full(shape, 77, np.uint8))
    assert image.shape == (4, 6, 3)
    assert (image == 77).all()


def test_sixteen_bit_array_is_scaled_to_eight() -> None:
    image, _ = as_rgb(np.array([[0, 257, 65535]], np.uint16))
    assert image[0, :, 0].tolist() == [0, 1, 255]


def test_transparent_pixels_show_the_letterbox_grey() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0]]], np.uint8)
    for given in (rgba, Image.fromarray(rgba)):
        image, _ = as_rgb(given)
        assert image[0].tolist() == [[255, 0, 0], [114, 114, 114]]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "RGBA", "1"])
def test_pil_image_of_any_mode_becomes_rgb(mode: str) -> None:
    source = Image.new("L", (6, 4), 255).convert("RGB").convert(mode)
    image, _ = as_rgb(source)
    assert image.shape == (4, 6, 3)
    assert (image == 255).all()


def test_sixteen_bit_pil_image_is_scaled_to_eight() -> None:
    image, _ = as_rgb(Image.fromarray(np.array([[0, 257, 65535]], np.uint16)))
    assert image[0, :, 1].tolist() == [0, 1, 255]


def test_exif_rotation_of_a_pil_image_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RED).save(tmp_path / "turned.jpg", exif=exif)
    with Image.open(tmp_path / "turned.jpg") as opened:
        image, path = as_rgb(opened)
    assert image.shape == (6, 4, 3)
    assert path == str(tmp_path / "turned.jpg")


@pytest.mark.parametrize(
    "value", [np.zeros((4, 6, 3), np.float32), np.zeros((3, 4, 6), np.uint8), np.zeros((0, 6, 3), np.uint8)]
)
def test_array_of_another_kind_is_refused_with_the_expected_one(value: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected uint8 \(H, W, 3\) RGB"):
        as_rgb(value)


def test_value_that_is_no_picture_is_refused() -> None:
    with pytest.raises(DataError, match="got int; expected a path"):
        as_rgb(3)
