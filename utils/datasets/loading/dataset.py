"""Data set of network-sized samples from a label index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.boxes.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.config.hyp import Hyp
from utils.datasets.augmenting.augment import PixelLabels, random_flips, random_hsv, random_warp
from utils.datasets.augmenting.letterbox import letterbox_hw, pad_to, resize, scale_into, scaled_hw
from utils.datasets.augmenting.mosaic import Tile, mixup, mosaic4, mosaic9
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.loading.batch import ImageInfo
from utils.datasets.loading.image_cache import ImageCache, fits_in_memory
from utils.datasets.reading.images import Pixels, read_image
from utils.errors import ConfigError, DataError

# Epoch, position in the index, and optionally the positions from which mosaic partners are drawn.
SampleKey = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image as the network sees it.

    Attributes:
        image: Pixels (3, H, W) uint8 RGB.
        targets: Boxes (n, 5) float32: class, cx, cy, w, h, normalised to [0, 1].
        info: Origin of the image.
    """

    image: Tensor
    targets: Tensor
    info: ImageInfo


class DetectionDataset(Dataset[Sample]):
    """The samples of a split.

    The random numbers of a sample depend only on the seed, its epoch and its position: whatever the number of
    workers, and after a resume, the same key gives the same bits.

    Args:
        index: Label index of the split.
        img_size: Longer side of an image in pixels, a multiple of `stride`.
        hyp: Strengths and probabilities of the augmentation.
        augment: Whether to change images at random: mosaic, mixup, warp, colour, flips.
        rect: Whether to pad each image only to the next multiple of the stride, without mosaics.
        frame_hw: Fixed height and width of every sample without augmentation, in place of `img_size` and `rect`;
            for networks exported for one size.
        stride: Largest stride of the network in pixels.
        cache_images: Whether to keep the resized images in memory, if they fit.
        seed: Seed of all random numbers.
        no_mosaic_from: First epoch without mosaics, so that training ends on ordinary images.

    Raises:
        ConfigError: `img_size` is not a multiple of `stride`.
    """

    def __init__(
        self,
        index: LabelIndex,
        *,
        img_size: int,
        hyp: Hyp,
        augment: bool = False,
        rect: bool = False,
        frame_hw: tuple[int, int] | None = None,
        stride: int = 32,
        cache_images: bool = False,
        seed: int = 0,
        no_mosaic_from: int | None = None,
    ) -> None:
        if img_size < stride or img_size % stride:
            raise ConfigError(f"--img-size {img_size} is not a multiple of the stride {stride}; choose a multiple")
        self.index = index
        self.img_size = img_size
        self.hyp = hyp
        self.augment = augment
        self.rect = rect
        self.frame_hw = frame_hw
        self.stride = stride
        self.seed = seed
        self.no_mosaic_from = no_mosaic_from
        self._cache: ImageCache | None = None
        shapes = [self._resized_hw(position) for position in range(len(index))]
        if cache_images and fits_in_memory(shapes):
            self._cache = ImageCache(shapes, self._load_resized)

    def __len__(self) -> int:
        return len(self.index)

    def output_hw(self, position: int) -> tuple[int, int]:
        """Return height and width of the sample at `position`."""
        if self.frame_hw:
            return self.frame_hw
        if self.rect:
            return letterbox_hw(self._original_hw(position), self.img_size, self.stride)
        return self.img_size, self.img_size

    def __getitem__(self, key: SampleKey) -> Sample:
        """Build the sample (epoch, position).

        Raises:
            DataError: The image cannot be read, or has changed since it was indexed.
        """
        epoch, position, *pool = key
        rng = np.random.default_rng((self.seed, epoch, position))
        scale, padding = 1.0, (0, 0)
        if self._may_be_mosaic(epoch) and rng.random() < self.hyp.mosaic:
            image, labels = self._mosaic(position, pool, rng)
            if rng.random() < self.hyp.mixup:
                other = self._mosaic(self._partner(pool, rng), pool, rng)
                image, labels = mixup((image, labels), other, rng=rng)
        else:
            image, labels, scale, padding = self._single(position, rng)
        if self.augment:
            image = random_hsv(image, hyp=self.hyp, rng=rng)
            image, labels = random_flips(image, labels, hyp=self.hyp, rng=rng)
        info = ImageInfo(
            path=self.index.paths[position],
            index=position,
            original_hw=self._original_hw(position),
            scale=scale,
            padding=padding,
        )
        return Sample(image=_to_tensor(image), targets=_normalised(labels, image.shape[:2]), info=info)

    def _may_be_mosaic(self, epoch: int) -> bool:
        is_over = self.no_mosaic_from is not None and epoch >= self.no_mosaic_from
        return self.augment and not self.rect and not is_over

    def _original_hw(self, position: int) -> tuple[int, int]:
        height, width = self.index.shapes_hw[position].tolist()
        return height, width

    def _scale(self, position: int) -> float:
        """Return the scale in pixels of the resized image per pixel of its file."""
        original_hw = self._original_hw(position)
        return scale_into(original_hw, self.frame_hw) if self.frame_hw else self.img_size / max(original_hw)

    def _resized_hw(self, position: int) -> tuple[int, int]:
        return scaled_hw(self._original_hw(position), self._scale(position))

    def _single(self, position: int, rng: np.random.Generator) -> tuple[Pixels, PixelLabels, float, tuple[int, int]]:
        """Return one letterboxed image, its boxes, and the scale and padding that map them back if not augmented."""
        image, labels = self._tile(position)
        out_hw = self.output_hw(position)
        framed, (left, top) = pad_to(image, out_hw)
        labels = labels + np.array([0, left, top, left, top], np.float32)
        if self.augment:
            framed, labels = random_warp(framed, labels, hyp=self.hyp, out_hw=out_hw, rng=rng)
        return framed, labels, self._scale(position), (left, top)

    def _mosaic(self, position: int, pool: list[int], rng: np.random.Generator) -> Tile:
        """Build a warped mosaic (img_size, img_size, 3) whose first image is the one at `position`."""
        is_nine = rng.random() < self.hyp.mosaic9
        partners = [self._partner(pool, rng) for _ in range(8 if is_nine else 3)]
        tiles = [self._tile(number) for number in (position, *partners)]
        compose = mosaic9 if is_nine else mosaic4
        canvas, labels = compose(tiles, img_size=self.img_size, rng=rng)
        return random_warp(canvas, labels, hyp=self.hyp, out_hw=(self.img_size, self.img_size), rng=rng)

    def _partner(self, pool: list[int], rng: np.random.Generator) -> int:
        return pool[rng.integers(len(pool))] if pool else int(rng.integers(len(self)))

    def _tile(self, position: int) -> Tile:
        """Return a resized image, and its boxes in pixels."""
        image = self._cache[position] if self._cache is not None else self._load_resized(position)
        height, width = image.shape[:2]
        labels = self.index.labels[position].copy()
        labels[:, 1:] = cxcywh_to_xyxy(labels[:, 1:]) * np.array([width, height, width, height], np.float32)
        return image, labels

    def _load_resized(self, position: int) -> Pixels:
        path, original_hw = self.index.paths[position], self._original_hw(position)
        image = read_image(path, digest=self.index.digests[position])
        if image.shape[:2] != original_hw:
            raise DataError(f"image {path} has changed since it was indexed; restart to index it again")
        return resize(image, self._resized_hw(position), is_smooth=not self.augment)


def _to_tensor(image: Pixels) -> Tensor:
    """Convert pixels (H, W, 3) to a contiguous tensor (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _normalised(labels: PixelLabels, hw: tuple[Any, ...]) -> Tensor:
    """Convert boxes (n, 5) from class, xyxy in pixels to class, cx, cy, w, h in [0, 1]."""
    height, width = hw
    boxes = xyxy_to_cxcywh(labels[:, 1:]) / np.array([width, height, width, height], np.float32)
    return torch.from_numpy(np.concatenate([labels[:, :1], boxes], axis=1, dtype=np.float32))
