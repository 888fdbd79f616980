"""Batches of images in memory or of files, drawn, cropped and normalised on the device of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from utils.config.choices import Augment
from utils.datasets.classes.changes import ResizedCrops, Shifts, draw_changes
from utils.datasets.classes.decoding import Array, FileImages, num_cores
from utils.datasets.classes.pictures import PictureSet
from utils.errors import ConfigError, DataError


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
        paths: Files of the images; empty if they have none.
    """

    images: Tensor
    targets: Tensor
    positions: Array
    normalisation: Normalisation
    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the images for messages: their files, or else their positions in the set."""
        return self.paths or tuple(f"number {position}" for position in self.positions.tolist())

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
    """Iterator over the batches of one epoch of images, each of which is read while the one before it is in use.

    A sample depends only on the seed, the epoch and the position of its image. Global batch k contains positions k*B
    to (k+1)*B of the epoch's order, and every process takes its contiguous share, so that the number of processes
    does not change the batches. With several processes a last batch that cannot be split evenly is filled up from its
    own beginning.
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Set up the batches.

        Args:
            pictures: Images to draw from; batches are on their device.
            batch_size: Most images in a global batch, over all processes.
            normalisation: Normalisation that the network expects, on the same device.
            augment: "crop" shifts images by up to 4 pixels either way, "crop-flip" also mirrors half of them;
                "resized-crop" enlarges random parts of them and mirrors half.
            is_training: True for a new order each epoch without an incomplete last batch; else all, in order.
            seed: Seed of order and augmentation.
            rank: Rank of this process.
            world_size: Number of processes.

        Raises:
            ConfigError: The batch cannot be split evenly among the processes.
            DataError: There are fewer images than processes.
        """
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"--batch-size {batch_size} cannot be split by {world_size} processes; use a multiple")
        if len(pictures) < world_size:
            raise DataError(f"{len(pictures)} images for {world_size} processes; use fewer processes or more images")
        self.pictures, self.normalisation = pictures, normalisation
        self.augment, self.is_training, self.seed = augment, is_training, seed
        self.batch_size = min(batch_size, len(pictures) // world_size * world_size)
        self._rank, self._world_size = rank, world_size
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
        pictures, stored = self.pictures, self.pictures.images
        rng = np.random.default_rng((self.seed, self._epoch))
        order = rng.permutation(len(pictures)) if self.is_training else np.arange(len(pictures))
        changes = draw_changes(rng, len(pictures), self.augment)
        shares = self._shares(order)
        # One copy for the whole epoch, so that the host waits for the device only once.
        positions_there = torch.from_numpy(np.concatenate(shares)).to(stored.device)
        there = torch.split(positions_there, [len(share) for share in shares])
        if isinstance(stored, FileImages):
            threads = max(1, num_cores() // self._world_size)
            crops = _file_batches(stored.with_threads(threads), shares, there, changes)
        else:
            crops = _tensor_batches(stored, there, changes)
        for positions, chosen, images in zip(shares, there, crops, strict=True):
            yield PictureBatch(
                images=images,
                targets=pictures.labels[chosen],
                positions=positions,
                normalisation=self.normalisation,
                paths=tuple(stored.paths[p] for p in positions.tolist()) if isinstance(stored, FileImages) else (),
            )

    def _shares(self, order: Array) -> list[Array]:
        """Return this process's part of each global batch."""
        shares, size = [], self.batch_size
        for start in range(0, len(self) * size, size):
            batch = order[start : start + size]
            per_rank = -(-len(batch) // self._world_size)
            filled = np.resize(batch, per_rank * self._world_size)  # repeats it from its beginning
            shares.append(filled[self._rank * per_rank : (self._rank + 1) * per_rank])
        return shares


def _tensor_batches(
    stored: Tensor, shares: Sequence[Tensor], changes: Shifts | ResizedCrops | None
) -> Iterator[Tensor]:
    there = None if changes is None else changes.to(stored.device)
    for chosen in shares:
        yield stored[chosen] if there is None else there.apply(stored[chosen], chosen)


def _file_batches(
    stored: FileImages, shares: Sequence[Array], there: Sequence[Tensor], changes: Shifts | ResizedCrops | None
) -> Iterator[Tensor]:
    if isinstance(changes, ResizedCrops):
        yield from stored.batches(shares, partial(changes.file_windows, sizes_hw=stored.sizes_hw))
        return
    shifts = None if changes is None else changes.to(stored.device)
    for chosen, images in zip(there, stored.batches(shares), strict=True):
        yield images if shifts is None else shifts.apply(images, chosen)
