"""Batches of images in memory, drawn, cropped and normalised on the device of the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config.choices import Augment
from utils.datasets.classes.pictures import Array, PictureSet

# Crops are taken from the image with a black border of this many pixels, the papers' choice for CIFAR.
_BORDER = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalisation:
    """The normalisation of image bytes: (image / 255 - mean) / std.

    Attributes:
        mean, std: Mean and standard deviation of each channel (C,), for images in [0, 1].
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...], *, device: torch.device) -> Normalisation:
        """Build a normalisation on a device from plain numbers."""
        return cls(mean=torch.tensor(mean, device=device), std=torch.tensor(std, device=device))

    def to(self, device: torch.device) -> Normalisation:
        """Return this normalisation on another device."""
        return replace(self, mean=self.mean.to(device), std=self.std.to(device))

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalise images (B, C, H, W) uint8 to floats of the same shape."""
        scale = (255 * self.std).to(dtype).view(-1, 1, 1)
        return images.to(dtype).sub_(255 * self.mean.to(dtype).view(-1, 1, 1)).div_(scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureBatch:
    """Images and classes of one step.

    Attributes:
        images: Images (B, C, H, W) uint8.
        targets: Class ids (B,) int64.
        positions: Positions (B,) of the images in their set.
        normalisation: Normalisation that the network expects.
    """

    images: Tensor
    targets: Tensor
    positions: Array
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the images for messages, by their positions in the set."""
        return tuple(f"number {position}" for position in self.positions.tolist())

    def to(self, device: torch.device) -> PictureBatch:
        """Return this batch on another device."""
        return replace(
            self,
            images=self.images.to(device),
            targets=self.targets.to(device),
            normalisation=self.normalisation.to(device),
        )

    def normalised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the normalised images (B, C, H, W) as floats."""
        return self.normalisation(self.images, dtype)


class PictureLoader:
    """Iterator over the batches of one epoch of images in memory.

    A sample depends only on the seed, the epoch and the position of its image.
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
        """Set up the batches.

        Args:
            pictures: Images to draw from; batches are on their device.
            batch_size: Most images in a batch.
            normalisation: Normalisation that the network expects, on the same device.
            augment: "crop" shifts images by up to 4 pixels either way, "crop-flip" also mirrors half of them.
            is_training: True for a new order each epoch without an incomplete last batch; else all, in order.
            seed: Seed of order and augmentation.
        """
        self.pictures, self.normalisation = pictures, normalisation
        self.augment, self.is_training, self.seed = augment, is_training, seed
        self.batch_size = min(batch_size, len(pictures))
        self._epoch = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        count = len(self.pictures)
        return count // self.batch_size if self.is_training else -(-count // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[PictureBatch]:
        """Yield the batches of the epoch, on the device of the images."""
        count, device = len(self.pictures), self.pictures.images.device
        rng = np.random.default_rng((self.seed, self._epoch))
        order = rng.permutation(count) if self.is_training else np.arange(count)
        changes = None if self.augment == "none" else _Changes.draw(rng, count, self.augment).to(device)
        # One copy for the whole epoch, so that the host waits for the device only once.
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
    """The augmentation of each image of a set in one epoch.

    Attributes:
        shifts: Row and column (N, 2) int64 where the crop starts in the image with its border.
        flips: Mask (N,) bool of the mirrored images.
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
        """Augment the images (B, C, H, W) at `positions` (B,) of the set."""
        count, _, height, width = images.shape
        padded = F.pad(images, (_BORDER, _BORDER, _BORDER, _BORDER))
        shifts = self.shifts[positions]
        rows = shifts[:, :1] + torch.arange(height, device=images.device)  # (B, H)
        across = torch.arange(width, device=images.device)
        columns = shifts[:, 1:] + torch.where(self.flips[positions, None], across.flip(0), across)  # (B, W)
        which = torch.arange(count, device=images.device)[:, None, None]
        return padded[which, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)  # from (B, H, W, C)
