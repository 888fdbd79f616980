"""Images with one label each, in memory, in .npz files or in files of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.datasets.classes.decoding import Array, FileImages
from utils.datasets.spread import spread
from utils.errors import DataError
from utils.storage.files import NPZ_ERRORS, atomic_write

__all__ = [
    "Array",
    "PictureData",
    "PictureSet",
    "channel_statistics",
    "picture_data",
    "read_picture_file",
    "write_picture_file",
]

# Array of class names; a file without it, such as MNIST, gets digits for names.
_NAMES = "classes"
# Most images that statistics of files are computed from.
_MOST_SAMPLED = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """Images of one size and their classes.

    Attributes:
        images: Images (N, C, H, W) uint8, in memory or decoded when they are indexed.
        labels: Class ids (N,) int64, on the device of the images.
        names: Class names, in order of class ids.
    """

    images: Tensor | FileImages
    labels: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise DataError(
                f"images: got {self.images.dtype} {tuple(self.images.shape)}, expected uint8 (N, C, H, W)"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels: got {self.labels.dtype} {tuple(self.labels.shape)}, expected int64 ({len(self.images)},)"
            )
        if not len(self.images):
            raise DataError("a set without images; give at least one")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.names):
            raise DataError(f"labels from {low} to {high}, expected 0 to {len(self.names) - 1}, one per name")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def first(self, count: int) -> PictureSet:
        """Return the first `count` images, or all if there are fewer."""
        images = self.images.first(count) if isinstance(self.images, FileImages) else self.images[:count]
        return replace(self, images=images, labels=self.labels[:count])

    def spread(self, count: int) -> PictureSet:
        """Return `count` images spread evenly over the set, or all if there are fewer."""
        chosen = spread(range(len(self)), count)
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])

    def to(self, device: torch.device) -> PictureSet:
        """Return the same images on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureData:
    """The training and the test split of a data set."""

    train: PictureSet
    test: PictureSet

    def __post_init__(self) -> None:
        if self.train.names != self.test.names or self.train.image_chw != self.test.image_chw:
            raise DataError(
                f"the splits differ: {self.train.image_chw} and {self.test.image_chw}, {len(self.train.names)} and "
                f"{len(self.test.names)} classes; expected the same sizes and names"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Class names, in order of class ids."""
        return self.train.names

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.train.image_chw


def channel_statistics(pictures: PictureSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, with bytes scaled to [0, 1].

    Of images in files, at most 500 that are spread evenly over the set are decoded.
    """
    images = pictures.images
    if isinstance(images, FileImages):
        images = images[np.linspace(0, len(images) - 1, min(len(images), _MOST_SAMPLED)).round().astype(np.int64)]
    mean, std = [], []
    for channel in range(pictures.image_chw[0]):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).double()
        shares, values = counts / counts.sum(), torch.arange(256, device=counts.device).double() / 255
        centre = float((shares * values).sum())
        mean.append(centre)
        std.append(float((shares * (values - centre).square()).sum().sqrt()) or 1.0)
    return tuple(mean), tuple(std)


def read_picture_file(path: str | Path) -> PictureData:
    """Read an .npz with `x_train`, `y_train`, `x_test`, `y_test` and optionally `classes`.

    Images are uint8, (N, H, W) or (N, H, W, C); labels are whole numbers from 0.

    Raises:
        DataError: The file is missing or damaged, or an array is missing or of another type.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"images {path} do not exist; check the path") from None
    except NPZ_ERRORS as error:
        raise DataError(f"images {path} cannot be read ({error}); give an undamaged .npz") from error
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in arrays:
            raise DataError(f"images {path} have no array {name!r}; expected x_train, y_train, x_test and y_test")
    try:
        return picture_data(arrays)
    except DataError as error:
        raise DataError(f"images {path}: {error}") from None


def picture_data(arrays: dict[str, Array]) -> PictureData:
    """Build both splits from the arrays of an image file.

    Raises:
        DataError: The arrays do not fit each other.
    """
    if _NAMES in arrays:
        names = tuple(str(name) for name in arrays[_NAMES])
    else:
        labels = np.concatenate([arrays["y_train"].ravel(), arrays["y_test"].ravel()])
        names = tuple(str(number) for number in range(int(labels.max(initial=0)) + 1))
    return PictureData(
        train=_picture_set(arrays["x_train"], arrays["y_train"], names),
        test=_picture_set(arrays["x_test"], arrays["y_test"], names),
    )


def _picture_set(images: Array, labels: Array, names: tuple[str, ...]) -> PictureSet:
    if images.ndim not in (3, 4) or images.dtype != np.uint8:
        raise DataError(f"images: got {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, C)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels: got {labels.dtype}, expected whole numbers")
    stacked = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return PictureSet(
        images=torch.from_numpy(np.ascontiguousarray(stacked)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        names=names,
    )


def write_picture_file(path: str | Path, arrays: dict[str, Array]) -> None:
    """Write arrays to an .npz that `read_picture_file` reads, completely or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
