"""What the loader hands to a network."""

from __future__ import annotations

import pytest
import torch

from utils.datasets.loading.batch import Batch, ImageInfo

INFO = ImageInfo(path="a.jpg", index=0, original_hw=(4, 6))


def batch(images: torch.Tensor) -> Batch:
    return Batch(images=images, targets=torch.zeros(0, 6), infos=(INFO,) * len(images))


def test_bytes_become_floats_from_0_to_1() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normalised = batch(images).normalised()
    assert normalised.dtype == torch.float32
    assert normalised.flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert images.flatten().tolist() == [0, 51, 255]


def test_floats_stay_as_they_are() -> None:
    images = torch.full((1, 3, 2, 2), 0.25)
    assert batch(images).normalised().eq(0.25).all()


def test_copy_to_a_device_keeps_targets_and_may_change_the_memory_format() -> None:
    moved = batch(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).to(torch.device("cpu"), channels_last=True)
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert (len(moved), moved.infos) == (2, (INFO, INFO))


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 1, 4, 4)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        batch(torch.zeros(shape))


def test_targets_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets: got \(2, 5\), expected \(N, 6\)"):
        Batch(images=torch.zeros(1, 3, 4, 4), targets=torch.zeros(2, 5), infos=(INFO,))
