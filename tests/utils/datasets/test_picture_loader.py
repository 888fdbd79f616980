"""Batches of pictures in memory: order, crops and mirrors depend on seed, epoch and position alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from utils.config.choices import Augment
from utils.datasets.classes.loader import Normalisation, PictureBatch, PictureLoader
from utils.datasets.classes.pictures import PictureSet

CPU = torch.device("cpu")


def numbered(count: int = 10, side: int = 6) -> PictureSet:
    """Picture i holds i + 1 in all pixels but the first column, which holds 100 + i."""
    images = torch.arange(1, count + 1, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 2, side, side)
    images[..., 0] = torch.arange(100, 100 + count, dtype=torch.uint8).view(-1, 1, 1)
    return PictureSet(images=images, labels=torch.arange(count) % 3, names=("a", "b", "c"))


def loader(
    *, augment: Augment = "none", is_training: bool = True, seed: int = 0, batch_size: int = 4, count: int = 10
) -> PictureLoader:
    normalisation = Normalisation.of((0.0, 0.0), (1.0, 1.0), device=CPU)
    return PictureLoader(
        numbered(count),
        batch_size=batch_size,
        normalisation=normalisation,
        augment=augment,
        is_training=is_training,
        seed=seed,
    )


def by_position(batches: PictureLoader) -> dict[int, Tensor]:
    """Each picture of an epoch as it was drawn."""
    return {
        int(position): image
        for batch in batches
        for position, image in zip(batch.positions, batch.images, strict=True)
    }


def test_judging_goes_through_all_pictures_in_order() -> None:
    batches = list(loader(is_training=False))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([batch.images for batch in batches]), numbered().images)
    assert torch.cat([batch.targets for batch in batches]).tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_training_draws_a_new_order_each_epoch_and_leaves_the_rest_out() -> None:
    batches = loader()
    assert len(batches) == 2
    orders = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        orders.append([int(position) for batch in batches for position in batch.positions])
    assert orders[0] == orders[2] != orders[1]
    assert len(set(orders[0])) == 8


def test_labels_and_names_follow_their_pictures() -> None:
    for batch in loader():
        assert batch.images[:, 0, 0, 1].tolist() == [position + 1 for position in batch.positions]
        assert batch.targets.tolist() == [position % 3 for position in batch.positions]
        assert batch.sources[0] == f"number {batch.positions[0]}"


def test_fewer_pictures_than_a_batch_make_one() -> None:
    batches = loader(batch_size=64)
    assert [len(batch) for batch in batches] == [10]


def test_crop_is_a_window_of_the_picture_with_a_black_border() -> None:
    drawn = by_position(loader(augment="crop"))
    padded = torch.nn.functional.pad(numbered().images, (4, 4, 4, 4))
    for position, image in drawn.items():
        windows = [padded[position, :, y : y + 6, x : x + 6] for y in range(9) for x in range(9)]
        assert any(torch.equal(image, window) for window in windows)
    assert not all(torch.equal(image, numbered().images[position]) for position, image in drawn.items())


def test_all_places_of_a_crop_and_both_directions_come_up_alike() -> None:
    # In one long epoch each of the 9 x 9 places is expected 2000 / 81 = 25 times.
    normalisation = Normalisation.of((0.0,), (1.0,), device=CPU)
    picture = torch.arange(1, 37, dtype=torch.uint8).view(1, 1, 6, 6)
    many = PictureSet(images=picture.repeat(2000, 1, 1, 1), labels=torch.zeros(2000, dtype=torch.int64), names=("a",))
    (batch,) = PictureLoader(many, batch_size=2000, normalisation=normalisation, augment="crop-flip")
    distinct, counts = torch.unique(batch.images.flatten(1), dim=0, return_counts=True)
    assert len(distinct) == 2 * 81
    assert int(counts.max()) < 40
    flipped = sum(bool((image[0].float().diff(dim=1) == -1).any()) for image in batch.images)
    assert 0.45 < flipped / 2000 < 0.55


def test_augmentation_of_a_picture_does_not_depend_on_its_batch() -> None:
    small, large = (by_position(loader(augment="crop-flip", batch_size=size)) for size in (2, 5))
    assert small.keys() == large.keys()
    assert all(torch.equal(small[position], large[position]) for position in small)


def test_epochs_and_seeds_differ_in_augmentation() -> None:
    first, other = loader(augment="crop-flip"), loader(augment="crop-flip", seed=1)
    epoch0 = by_position(first)
    first.set_epoch(1)
    for changed in (by_position(first), by_position(other)):
        shared = epoch0.keys() & changed.keys()
        assert not all(torch.equal(epoch0[position], changed[position]) for position in shared)


def test_normalised_pictures_are_bytes_over_255_less_mean_over_std() -> None:
    normalisation = Normalisation.of((0.5, 0.25), (0.25, 0.5), device=CPU)
    images = torch.tensor([[[[255]], [[51]]]], dtype=torch.uint8)
    batch = PictureBatch(
        images=images, targets=torch.tensor([0]), positions=torch.zeros(1).numpy(), normalisation=normalisation
    )
    # (1 - 0.5) / 0.25 and (0.2 - 0.25) / 0.5
    assert batch.to(CPU).normalised().flatten().tolist() == pytest.approx([2.0, -0.1])
    assert batch.images.dtype == torch.uint8
