"""Calibration images: which ones, how they look, and what is said when there are too few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_data

from deploy.calibration import calibration_images
from utils.datasets.reading.images import FILL, read_image
from utils.errors import ConfigError, DataError


def listed(yaml: Path, split: str = "train") -> list[str]:
    return (yaml.parent / f"{split}.txt").read_text().split()


def test_images_are_letterboxed_rgb_in_0_to_1(tmp_path: Path) -> None:
    yaml = tiny_data(tmp_path, images=1)
    (image,) = calibration_images(str(yaml), count=1, image_hw=(480, 704))
    assert (image.shape, image.dtype) == ((1, 3, 480, 704), torch.float32)
    # BCCD pictures are 640 x 480: nothing is scaled, 32 columns of grey stand on either side.
    assert torch.equal(image[..., :32], torch.full((1, 3, 480, 32), FILL / 255))
    pixels = (image[0, :, :, 32:-32] * 255).round().numpy().transpose(1, 2, 0)
    assert np.array_equal(pixels, read_image(listed(yaml)[0]))


def test_images_are_spread_evenly_over_the_split_and_always_the_same(tmp_path: Path) -> None:
    yaml = str(tiny_data(tmp_path, images=6))
    everything = calibration_images(yaml, count=6, image_hw=(64, 64))
    some = calibration_images(yaml, count=2, image_hw=(64, 64))
    # The middles of [0, 3) and [3, 6).
    assert [torch.equal(image, everything[index]) for image, index in zip(some, (1, 4), strict=True)] == [True, True]
    again = calibration_images(yaml, count=2, image_hw=(64, 64))
    assert all(torch.equal(first, second) for first, second in zip(some, again, strict=True))


def test_another_split_gives_other_images(tmp_path: Path) -> None:
    yaml = str(tiny_data(tmp_path, images=1))
    train, val = (calibration_images(yaml, count=1, image_hw=(64, 64), split=split)[0] for split in ("train", "val"))
    assert not torch.equal(train, val)


def test_too_few_images_name_both_numbers_and_the_remedy(tmp_path: Path) -> None:
    yaml = str(tiny_data(tmp_path, images=3))
    with pytest.raises(
        DataError, match=r"train has 3 usable images, fewer than the 4 asked.*lower --calib-images to 3"
    ):
        calibration_images(yaml, count=4, image_hw=(64, 64))


def test_an_empty_or_missing_split_is_one_line(tmp_path: Path) -> None:
    yaml = tiny_data(tmp_path, images=1)
    with pytest.raises(DataError, match=r"has no 'test:' line, only train, val; add one"):
        calibration_images(str(yaml), count=1, image_hw=(64, 64), split="test")
    (tmp_path / "train.txt").write_text("")
    with pytest.raises(DataError, match=r"train") as caught:
        calibration_images(str(yaml), count=1, image_hw=(64, 64))
    assert "\n" not in str(caught.value)


def test_a_count_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--calib-images 0: expected at least 1"):
        calibration_images(str(tiny_data(tmp_path)), count=0, image_hw=(64, 64))
