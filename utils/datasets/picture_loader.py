"""Batches of pictures in memory: drawn, cropped and normalised on the device they lie on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.datasets.classification import Array, PictureSet

Augment = Literal["none", "crop", "crop-flip"]

# Crops are of the picture with a black border of this many pixels, the papers' choice for CIFAR.
_BORDER = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalisation:
    """What bytes become: (image / 255 - mean) / std.

    Attributes:
        mean, std: Of each channel (C,), for images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...], *, device: torch.device) -> Normalisation:
        """From plain numbers."""
        return cls(mean=torch.tensor(mean, device=device), std=torch.tensor(std, device=device))

    def to(self, device: torch.device) -> Normalisation:
        """The same numbers on a device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, C, H, W) uint8 to floats."""
        scale = (255 * self.std).to(dtype).view(-1, 1, 1)
        return images.to(dtype).sub_(255 * self.mean.to(dtype).view(-1, 1, 1)).div_(scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureBatch:
    """Pictures and classes of one step.

    Attributes:
        images: (B, C, H, W) uint8.
        targets: (B,) int64 classes.
        positions: (B,) of the pictures in their set.
        normalisation: What the network wants to see.
    """

    images: Tensor
    targets: Tensor
    positions: Array
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sources(self) -> tuple[str, ...]:
        """Which pictures these are, for messages."""
        return tuple(f"number {position}" for position in self.positions.tolist())

    def to(self, device: torch.device) -> PictureBatch:
        """The same batch on a device."""
        return replace(
            self,
            images=self.images.to(device),
            targets=self.targets.to(device),
            normalisation=self.normalisation.to(device),
        )

    def normalised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Images as (B, C, H, W) floats."""
        return self.normalisation(self.images, dtype)


class PictureLoader:
    """Iterates over the batches of one epoch of pictures in memory.

    A sample depends on the seed, the epoch and its picture's position alone.
    """

    def __init__(
        self,
        pictures: PictureSet,
        *,
        batch_size: int,
        normalisation: Normalisation,
        augment: Augment = "none",
        is_training: bool = False,
        seed: int = 0,
    ) -> None:
        """Describe the batches.

        Args:
            pictures: Where they come from; batches lie on their device.
            batch_size: Pictures of a batch, at most.
            normalisation: On the same device.
            augment: "crop" moves pictures by up to 4 pixels either way, "crop-flip" also mirrors every other one.
            is_training: A new order each epoch, whose rest that fills no batch is left out; else all, in order.
            seed: Of order and augmentation.
        """
        self.pictures, self.normalisation = pictures, normalisation
        self.augment, self.is_training, self.seed = augment, is_training, seed
        self.batch_size = min(batch_size, len(pictures))
        self._epoch = 0

    def __len__(self) -> int:
        """Batches of an epoch."""
        count = len(self.pictures)
        return count // self.batch_size if self.is_training else -(-count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch that the next iteration draws."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[PictureBatch]:
        """Batches on the pictures' device."""
        count, device = len(self.pictures), self.pictures.images.device
        rng = np.random.default_rng((self.seed, self._epoch))
        order = rng.permutation(count) if self.is_training else np.arange(count)
        changes = None if self.augment == "none" else _Changes.draw(rng, count, self.augment).to(device)
        # Copied once: an epoch makes the host wait for the device no more than that.
        order_there = torch.from_numpy(order).to(device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = order_there[start : start + self.batch_size]
            images = self.pictures.images[chosen]
            yield PictureBatch(
                images=images if changes is None else changes.apply(images, chosen),
                targets=self.pictures.labels[chosen],
                positions=order[start : start + self.batch_size],
                normalisation=self.normalisation,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Changes:
    """How each picture of a set is changed in one epoch.

    Attributes:
        shifts: (N, 2) int64 where a crop begins in the picture with its border: row, column.
        flips: (N,) bool, whether it is mirrored.
    """

    shifts: Tensor
    flips: Tensor

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, augment: Augment) -> _Changes:
        shifts = rng.integers(0, 2 * _BORDER + 1, (count, 2))
        flips = rng.random(count) < (0.5 if augment == "crop-flip" else 0.0)
        return cls(shifts=torch.from_numpy(shifts), flips=torch.from_numpy(flips))

    def to(self, device: torch.device) -> _Changes:
        return replace(self, shifts=self.shifts.to(device), flips=self.flips.to(device))

    def apply(self, images: Tensor, positions: Tensor) -> Tensor:
        """The pictures (B, C, H, W) at `positions` (B,) of the set, changed."""
        count, _, height, width = images.shape
        padded = F.pad(images, (_BORDER, _BORDER, _BORDER, _BORDER))
        shifts = self.shifts[positions]
        rows = shifts[:, :1] + torch.arange(height, device=images.device)  # (B, H)
        across = torch.arange(width, device=images.device)
        columns = shifts[:, 1:] + torch.where(self.flips[positions, None], across.flip(0), across)  # (B, W)
        which = torch.arange(count, device=images.device)[:, None, None]
        return padded[which, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)  # from (B, H, W, C)
