"""Random changes of training images: shifted, mirrored and resized crops, drawn for a whole epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config.choices import Augment
from utils.datasets.classes.decoding import Array

# Crops are taken from the image with a black border of this many pixels, the papers' choice for CIFAR.
_BORDER = 4
# Least share of an image's area in a resized crop, and largest ratio of its sides.
_LEAST_AREA = 0.08
_MOST_RATIO = 4 / 3


def draw_changes(rng: np.random.Generator, count: int, augment: Augment) -> Shifts | ResizedCrops | None:
    """Draw the changes of each of `count` images in one epoch; None without augmentation."""
    if augment == "none":
        return None
    if augment == "resized-crop":
        return ResizedCrops(draws=torch.from_numpy(rng.random((count, 5), dtype=np.float32)))
    shifts = rng.integers(0, 2 * _BORDER + 1, (count, 2))
    flips = rng.random(count) < (0.5 if augment == "crop-flip" else 0.0)
    return Shifts(shifts=torch.from_numpy(shifts), flips=torch.from_numpy(flips))


@dataclass(frozen=True, kw_only=True, eq=False)
class Shifts:
    """Shifted and mirrored crops of each image of a set in one epoch.

    Attributes:
        shifts: Row and column (N, 2) int64 where the crop starts in the image with its border.
        flips: Mask (N,) bool of the mirrored images.
    """

    shifts: Tensor
    flips: Tensor

    def to(self, device: torch.device) -> Shifts:
        """Return the same changes on another device."""
        return replace(self, shifts=self.shifts.to(device), flips=self.flips.to(device))

    def apply(self, images: Tensor, positions: Tensor) -> Tensor:
        """Change the images (B, C, H, W) at `positions` (B,) of the set."""
        count, _, height, width = images.shape
        padded = F.pad(images, (_BORDER, _BORDER, _BORDER, _BORDER))
        shifts = self.shifts[positions]
        rows = shifts[:, :1] + torch.arange(height, device=images.device)  # (B, H)
        across = torch.arange(width, device=images.device)
        columns = shifts[:, 1:] + torch.where(self.flips[positions, None], across.flip(0), across)  # (B, W)
        which = torch.arange(count, device=images.device)[:, None, None]
        return padded[which, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)  # from (B, H, W, C)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResizedCrops:
    """Crops of random area and aspect of each image of a set in one epoch, resized to one size; half are mirrored.

    Szegedy et al., "Going Deeper with Convolutions", CVPR 2015: 8 to 100 % of the area, aspects from 3/4 to 4/3. Ours
    draws the aspect first and then an area that fits, instead of drawing both until they fit.

    Attributes:
        draws: Random numbers (N, 5) in [0, 1), of aspect, area, row, column and mirroring.
    """

    draws: Tensor

    def to(self, device: torch.device) -> ResizedCrops:
        """Return the same changes on another device."""
        return replace(self, draws=self.draws.to(device))

    def windows(self, positions: Tensor, sizes_hw: Tensor) -> Tensor:
        """Return top, left, height and width in pixels, and 1 to mirror it or 0, (B, 5) float, of each crop.

        Args:
            positions: Positions (B,) of the images in the set.
            sizes_hw: Height and width (B, 2) of the images.
        """
        aspect, area, row, column, mirror = self.draws[positions].unbind(1)
        height, width = sizes_hw.to(aspect.dtype).unbind(1)
        ratio = torch.exp((2 * aspect - 1) * math.log(_MOST_RATIO))  # width of the crop / height
        most = torch.minimum(width / height / ratio, ratio * height / width).clamp(max=1)
        least = most.clamp(max=_LEAST_AREA)
        crop_height = (height * width * (least + area * (most - least)) / ratio).sqrt()
        crop_width = ratio * crop_height
        # Rounding may make a crop a little larger than its image.
        top, left = row * (height - crop_height).clamp(min=0), column * (width - crop_width).clamp(min=0)
        return torch.stack((top, left, crop_height, crop_width, (mirror < 0.5).to(top.dtype)), 1)

    def file_windows(self, positions: Array, sizes_hw: Array) -> Array:
        """Return `windows` of the images at `positions` (B,) of a set whose images have `sizes_hw` (N, 2)."""
        found = self.windows(torch.from_numpy(positions), torch.from_numpy(sizes_hw[positions]))
        return np.asarray(found.numpy())

    def apply(self, images: Tensor, positions: Tensor) -> Tensor:
        """Change the images (B, C, H, W) at `positions` (B,) of the set; they keep their size."""
        count, _, height, width = images.shape
        sizes_hw = torch.tensor((height, width), device=images.device).expand(count, 2)
        top, left, crop_height, crop_width, mirror = self.windows(positions, sizes_hw).T[:, :, None]
        down, across = ((torch.arange(length, device=images.device) + 0.5) / length for length in (height, width))
        across = torch.where(mirror > 0, 1 - across, across)  # (B, W)
        y = 2 * (top + crop_height * down) / height - 1  # (B, H), from -1 to 1 over the image
        x = 2 * (left + crop_width * across) / width - 1
        grid = torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), 3)
        sampled = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return sampled.round_().clamp_(0, 255).to(torch.uint8)
