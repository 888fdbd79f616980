"""Pictures with one label each, in memory: what they are, and files of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import DataError
from utils.files import NPZ_ERRORS, atomic_write

Array = np.ndarray[Any, Any]

# Digits of MNIST; other files without names get numbers too.
_NAMES = "classes"


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """Pictures of one size and their classes.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64, below the number of names; on the device of the images.
        names: Of the classes.
    """

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise DataError(
                f"pictures: got {self.images.dtype} {tuple(self.images.shape)}, expected uint8 (N, C, H, W)"
            )
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise DataError(
                f"labels: got {self.labels.dtype} {tuple(self.labels.shape)}, expected int64 ({len(self.images)},)"
            )
        if not len(self.images):
            raise DataError("a set of no pictures; give at least one")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.names):
            raise DataError(f"labels from {low} to {high}, expected 0 to {len(self.names) - 1}, one per name")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def first(self, count: int) -> PictureSet:
        """The first `count` pictures, or all where there are fewer."""
        return replace(self, images=self.images[:count], labels=self.labels[:count])

    def to(self, device: torch.device) -> PictureSet:
        """The same pictures on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureData:
    """The two splits of a data set."""

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
        """Of the classes."""
        return self.train.names

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.train.image_chw


def channel_statistics(pictures: PictureSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with bytes as numbers in [0, 1]."""
    mean, std = [], []
    for channel in range(pictures.image_chw[0]):
        counts = torch.bincount(pictures.images[:, channel].reshape(-1), minlength=256).double()
        shares, values = counts / counts.sum(), torch.arange(256, device=counts.device).double() / 255
        centre = float((shares * values).sum())
        mean.append(centre)
        std.append(float((shares * (values - centre).square()).sum().sqrt()) or 1.0)
    return tuple(mean), tuple(std)


def read_picture_file(path: str | Path) -> PictureData:
    """Read an .npz of `x_train`, `y_train`, `x_test`, `y_test` and, where it has them, `classes`.

    Pictures are uint8, (N, H, W) or (N, H, W, C); labels are whole numbers from 0.

    Raises:
        DataError: The file is missing or damaged, or an array is missing or of another kind.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"pictures {path} do not exist; check the path") from None
    except NPZ_ERRORS as error:
        raise DataError(f"pictures {path} cannot be read ({error}); give an undamaged .npz") from error
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in arrays:
            raise DataError(f"pictures {path} have no array {name!r}; expected x_train, y_train, x_test and y_test")
    try:
        return picture_data(arrays)
    except DataError as error:
        raise DataError(f"pictures {path}: {error}") from None


def picture_data(arrays: dict[str, Array]) -> PictureData:
    """The splits that arrays as in a picture file make up.

    Raises:
        DataError: They do not fit each other.
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
        raise DataError(f"pictures: got {images.dtype} {images.shape}, expected uint8 (N, H, W) or (N, H, W, C)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels: got {labels.dtype}, expected whole numbers")
    stacked = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return PictureSet(
        images=torch.from_numpy(np.ascontiguousarray(stacked)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        names=names,
    )


def write_picture_file(path: str | Path, arrays: dict[str, Array]) -> None:
    """Write arrays as `read_picture_file` wants them, whole or not at all."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
