"""Batches of images in files: crops by hand, the same whichever way they are asked for, read ahead of their use."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from class_folder_factory import write_folder, write_image
from torch import Tensor

from utils.config.choices import Augment
from utils.datasets.classes import decoding
from utils.datasets.classes.changes import ResizedCrops
from utils.datasets.classes.decoding import FileImages, centre_crop, window_crop
from utils.datasets.classes.known import load_pictures
from utils.datasets.classes.loader import Normalisation, PictureLoader
from utils.datasets.classes.pictures import PictureSet
from utils.errors import ConfigError, DataError

CPU = torch.device("cpu")


def files(folder: Path, *, side: int = 8) -> PictureSet:
    """Twelve images of noise in various sizes."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(12):
            path = folder / "data" / split / f"class{number % 3}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (10 + number, 24 - number, 3), dtype=np.uint8))
    return load_pictures(str(folder / "data"), folder / "cache", img_size=side).train


def loader(
    pictures: PictureSet, *, augment: Augment = "none", is_training: bool = True, seed: int = 0, **options: int
) -> PictureLoader:
    return PictureLoader(
        pictures,
        normalisation=Normalisation.of((0.5,) * 3, (0.25,) * 3, device=CPU),
        augment=augment,
        is_training=is_training,
        seed=seed,
        **{"batch_size": 4, **options},
    )


def by_position(batches: PictureLoader) -> dict[int, Tensor]:
    return {
        int(position): image
        for batch in batches
        for position, image in zip(batch.positions, batch.images, strict=True)
    }


def test_shorter_side_is_resized_and_the_centre_cut_out() -> None:
    image = np.zeros((256, 600, 3), np.uint8)
    image[16:240, 188:412] = np.arange(224, dtype=np.uint8)[:, None]
    # The shorter side has 256 pixels already, so the crop is the middle of the image as it is.
    crop = centre_crop(image, 224)
    assert (crop == image[16:240, 188:412]).all()
    # Twice the size is averaged down to the same.
    assert (centre_crop(image.repeat(2, 0).repeat(2, 1), 224) == crop).all()
    assert centre_crop(image[:3, :1], 224).shape == (224, 224, 3)


def test_window_is_resized_and_mirrored() -> None:
    image = np.arange(36, dtype=np.uint8).reshape(6, 6, 1).repeat(3, 2)
    assert (window_crop(image, np.array([1, 2, 3, 3, 0]), 3) == image[1:4, 2:5]).all()
    assert (window_crop(image, np.array([1, 2, 3, 3, 1.0]), 3) == image[1:4, 4:1:-1]).all()
    # Pixels 2 x 2 of the window are averaged.
    assert window_crop(image, np.array([0, 0, 2, 2, 0]), 1)[0, 0, 0] == round((0 + 1 + 6 + 7) / 4)
    # Beyond an image that was replaced by a smaller one lies its last pixel.
    assert window_crop(image, np.array([9, 9, 2, 2, 0]), 1)[0, 0, 0] == 35


def test_files_are_indexed_like_a_tensor(tmp_path: Path) -> None:
    images = files(tmp_path).images
    assert isinstance(images, FileImages)
    whole = images[:]
    assert (images.shape, images.ndim, images.dtype, images.device) == (whole.shape, 4, torch.uint8, CPU)
    assert torch.equal(images[torch.tensor([3, 1, 3])], whole[[3, 1, 3]])
    assert torch.equal(images[[3, 1]], whole[[3, 1]])
    assert torch.equal(images[2:5], whole[2:5])
    assert torch.equal(images[np.array([-1])], whole[-1:])
    assert torch.equal(images[5], whole[5])
    assert torch.equal(images[torch.arange(12) > 9], whole[10:])
    assert images[[]].shape == (0, 3, 8, 8)
    with pytest.raises(IndexError):
        images[[12]]


@pytest.mark.parametrize("augment", ["none", "crop", "crop-flip"])
def test_crops_and_mirrors_of_files_are_those_of_centre_crops_in_memory(augment: Augment, tmp_path: Path) -> None:
    pictures = files(tmp_path)
    memory = PictureSet(images=pictures.images[:], labels=pictures.labels, names=pictures.names)
    pairs = zip(loader(pictures, augment=augment), loader(memory, augment=augment), strict=True)
    for lazy, stored in pairs:
        assert torch.equal(lazy.images, stored.images)
        assert torch.equal(lazy.targets, stored.targets)
        assert lazy.positions.tolist() == stored.positions.tolist()


def test_sources_of_files_are_their_paths(tmp_path: Path) -> None:
    pictures = files(tmp_path)
    assert isinstance(pictures.images, FileImages)
    for batch in loader(pictures):
        assert batch.sources == tuple(pictures.images.paths[position] for position in batch.positions)
        assert Path(batch.sources[0]).is_file()
        assert batch.to(CPU).sources == batch.sources


@pytest.mark.parametrize("is_lazy", [True, False])
def test_resized_crop_depends_on_seed_epoch_and_position_alone(is_lazy: bool, tmp_path: Path) -> None:
    pictures = files(tmp_path)
    if not is_lazy:
        pictures = PictureSet(images=pictures.images[:], labels=pictures.labels, names=pictures.names)
    batches = loader(pictures, augment="resized-crop")
    first = by_position(batches)
    assert sorted(first) == list(range(12))
    for size in (3, 12):
        other = by_position(loader(pictures, augment="resized-crop", batch_size=size))
        assert all(torch.equal(first[position], image) for position, image in other.items())
    batches.set_epoch(1)
    second, seeded = by_position(batches), by_position(loader(pictures, augment="resized-crop", seed=1))
    for changed in (second, seeded):
        assert not any(torch.equal(first[position], image) for position, image in changed.items())


def test_windows_of_resized_crops_lie_inside_and_keep_area_and_aspect() -> None:
    count = 4000
    draws = torch.from_numpy(np.random.default_rng(0).random((count, 5), dtype=np.float32))
    sizes = torch.tensor([[100, 100], [60, 120], [300, 100], [10, 4000]]).repeat(count // 4, 1)
    top, left, height, width, mirror = ResizedCrops(draws=draws).windows(torch.arange(count), sizes).unbind(1)
    assert bool((top >= 0).all() and (left >= 0).all())
    assert bool((top + height <= sizes[:, 0] + 0.01).all() and (left + width <= sizes[:, 1] + 0.01).all())
    aspect, share = width / height, height * width / sizes.prod(1)
    assert (float(aspect.min()), float(aspect.max())) == pytest.approx((3 / 4, 4 / 3), rel=0.01)
    square = share[::4]
    assert 0.08 <= float(square.min()) < 0.09
    assert 0.95 < float(square.max()) <= 1.0001
    # No window of these aspects has 8 % of a panorama: the largest that fits is taken.
    assert float(height[3::4].min()) > 7.4
    assert 0.47 < float(mirror.mean()) < 0.53


def test_resized_crop_of_a_whole_image_in_memory_is_the_image_or_its_mirror() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    # Aspect 1 and all of the area; the second is mirrored.
    draws = torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.9], [0.5, 1.0, 0.5, 0.5, 0.1]])
    whole, mirrored = ResizedCrops(draws=draws).apply(images, torch.arange(2))
    assert torch.equal(whole, images[0])
    assert torch.equal(mirrored, images[1].flip(2))


def test_resized_crop_in_memory_enlarges_its_window() -> None:
    ramp = torch.arange(0, 160, 10, dtype=torch.uint8).expand(1, 1, 16, 16)
    # A quarter of the area at the left and at the top: columns 0 to 8 fill the image.
    area = (0.25 - 0.08) / 0.92
    (crop,) = ResizedCrops(draws=torch.tensor([[0.5, area, 0.0, 0.0, 0.9]])).apply(ramp, torch.tensor([0]))
    expected = [10 * max(0.0, (column + 0.5) / 2 - 0.5) for column in range(16)]
    assert crop[0, 5].tolist() == pytest.approx(expected, abs=0.6)


def test_next_batch_is_decoded_while_this_one_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, read = files(tmp_path), threading.Semaphore(0)
    read_image = decoding.read_image

    def counted(path: str, *, digest: bytes) -> object:
        image = read_image(path, digest=digest)
        read.release()
        return image

    monkeypatch.setattr(decoding, "read_image", counted)
    batches = iter(loader(pictures))
    next(batches)
    # Eight images, of this batch of four and the next one, are read without asking for more.
    assert all(read.acquire(timeout=5) for _ in range(8))
    assert not read.acquire(timeout=0.05)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    assert threads
    batches.close()  # type: ignore[attr-defined]
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("augment", ["none", "resized-crop"])
@pytest.mark.parametrize("is_lazy", [True, False])
def test_processes_share_the_batches_of_one(augment: Augment, is_lazy: bool, tmp_path: Path) -> None:
    pictures = files(tmp_path)
    if not is_lazy:
        pictures = PictureSet(images=pictures.images[:], labels=pictures.labels, names=pictures.names)
    alone = list(loader(pictures, augment=augment))
    ranks = [list(loader(pictures, augment=augment, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone) == 3
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [len(part) for part in parts] == [2, 2]
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))


def test_last_batch_of_processes_is_filled_up_from_its_beginning(tmp_path: Path) -> None:
    pictures = files(tmp_path).first(7)
    ranks = [loader(pictures, is_training=False, rank=rank, world_size=2) for rank in (0, 1)]
    found = [[batch.positions.tolist() for batch in batches] for batches in ranks]
    assert found == [[[0, 1], [4, 5]], [[2, 3], [6, 4]]]


def test_batch_that_processes_cannot_share_is_refused(tmp_path: Path) -> None:
    pictures = files(tmp_path)
    with pytest.raises(ConfigError, match="--batch-size 4 cannot be split by 3 processes; use a multiple"):
        loader(pictures, world_size=3)
    with pytest.raises(DataError, match="2 images for 4 processes"):
        loader(pictures.first(2), world_size=4)
    # Fewer images than a batch make one that all processes can share.
    assert loader(pictures.first(3), world_size=2).batch_size == 2


def test_error_of_a_thread_names_the_image(tmp_path: Path) -> None:
    data = load_pictures(str(write_folder(tmp_path / "pets")), tmp_path / "cache", img_size=4)
    write_image(tmp_path / "pets/train/cat/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"train/cat/0.png cannot be read: it is not an image"):
        list(loader(data.train, is_training=False))
