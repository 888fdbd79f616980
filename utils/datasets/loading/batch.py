"""Batches of images and boxes that the loader yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor


class TrainingBatch(Protocol):
    """The interface of a batch for training, whatever its targets are.

    Attributes:
        images: Images (B, C, H, W), uint8, or float in [0, 1].
        targets: Targets that the loss compares outputs with.
        sources: Origin of each image, for messages.
    """

    @property
    def images(self) -> Tensor: ...

    @property
    def targets(self) -> Tensor: ...

    @property
    def sources(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """Return the batch on `device`."""

    def normalised(self) -> Tensor:
        """Return the images (B, C, H, W) as the floats that the network takes."""


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """The origin of an image of a batch, and the mapping of its boxes back to it.

    Attributes:
        path: Image file.
        index: Position in the label index.
        original_hw: Height and width of the image as displayed (EXIF rotation applied).
        scale: Letterboxed pixels per original pixel.
        padding: Left and top border in letterboxed pixels.
    """

    path: str
    index: int
    original_hw: tuple[int, int]
    scale: float = 1.0
    padding: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and boxes of one step.

    Attributes:
        images: Images (B, 3, H, W) RGB, uint8, or float in [0, 1].
        targets: Boxes (N, 6) float32: image index in the batch, class, cx, cy, w, h, normalised to [0, 1].
        infos: Origin of each image.
    """

    images: Tensor
    targets: Tensor
    infos: tuple[ImageInfo, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(f"images: got {tuple(self.images.shape)}, expected (B, 3, H, W)")
        if self.targets.ndim != 2 or self.targets.shape[1] != 6:
            raise ValueError(f"targets: got {tuple(self.targets.shape)}, expected (N, 6)")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def sources(self) -> tuple[str, ...]:
        """Image files, in order."""
        return tuple(info.path for info in self.infos)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory, for asynchronous copies to a GPU."""
        return replace(self, images=self.images.pin_memory(), targets=self.targets.pin_memory())

    def to(self, device: torch.device, *, channels_last: bool = False) -> Batch:
        """Copy the batch to `device` without waiting; images are sent as bytes, not floats."""
        images = self.images.to(device, non_blocking=True)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return replace(self, images=images, targets=self.targets.to(device, non_blocking=True))

    def normalised(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the images (B, 3, H, W) as floats in [0, 1], computed on their device."""
        if self.images.dtype == torch.uint8:
            return self.images.to(dtype).div_(255)
        return self.images.to(dtype)
