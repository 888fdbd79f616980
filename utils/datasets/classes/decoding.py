"""Images of one size that are decoded from their files when they are used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from utils.datasets.augmenting.letterbox import resize
from utils.datasets.reading.images import Pixels, read_image

Array = np.ndarray[Any, Any]
Index = Tensor | Array | Sequence[int] | slice

# Evaluation resizes the shorter side to 256 pixels for a crop of 224, and other sizes in proportion.
_SHORTER_SIDE = 256 / 224
# Batches that are being decoded while the network works on the one before them.
_AHEAD = 1
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class FileImages:
    """A stand-in for a tensor (N, 3, S, S) uint8 of RGB images, of which only file names are in memory.

        images[[3, 5]]                      # their centre crops, a tensor (2, 3, S, S)
        for batch in images.batches(order): # centre crops; the next batch is decoded meanwhile

    Attributes:
        paths: Image files.
        sizes_hw: Height and width (N, 2) int64 of the images as displayed.
        digests: Digests of the files, from `check_image`.
        side: Height and width of the crops in pixels, S.
        device: Device of the crops.
        num_threads: Threads that decode; 0 for as many as there are cores.
    """

    paths: tuple[str, ...]
    sizes_hw: Array
    digests: tuple[bytes, ...]
    side: int
    device: torch.device = _CPU
    num_threads: int = 0

    ndim: ClassVar[int] = 4
    dtype: ClassVar[torch.dtype] = torch.uint8

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor of all images."""
        return torch.Size((len(self.paths), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, chosen: Index | int) -> Tensor:
        """Decode the centre crops (B, 3, S, S) of some images, or that of one (3, S, S).

        Raises:
            IndexError: There are no such images.
            DataError: An image cannot be read any more.
        """
        if isinstance(chosen, Tensor):
            chosen = chosen.cpu().numpy()
        elif isinstance(chosen, Sequence):
            chosen = np.array(chosen, dtype=np.int64)
        positions = np.arange(len(self))[chosen]
        (batch,) = self.batches([np.atleast_1d(positions)])
        return batch if positions.ndim else batch[0]

    def first(self, count: int) -> FileImages:
        """Return the first `count` images, or all if there are fewer, without decoding them."""
        return replace(self, paths=self.paths[:count], sizes_hw=self.sizes_hw[:count], digests=self.digests[:count])

    def to(self, device: torch.device) -> FileImages:
        """Return the same images, whose crops are on another device."""
        return replace(self, device=device)

    def with_threads(self, count: int) -> FileImages:
        """Return the same images, decoded by `count` threads."""
        return replace(self, num_threads=count)

    def batches(self, shares: Iterable[Array], windows: Callable[[Array], Array] | None = None) -> Iterator[Tensor]:
        """Decode batches of images, each while the one before it is in use.

        Args:
            shares: Positions (B,) of the images of each batch.
            windows: Function from positions (B,) to what is cut out of each image: top, left, height and width in
                pixels, and whether to mirror it, (B, 5); None for centre crops.

        Yields:
            Images (B, 3, S, S) uint8.

        Raises:
            DataError: An image cannot be read any more.
        """
        pending: deque[list[Future[Pixels]]] = deque()
        pool = ThreadPoolExecutor(self.num_threads or num_cores(), thread_name_prefix="decode")
        try:
            for positions in shares:
                cut = [None] * len(positions) if windows is None else windows(positions)
                pending.append(
                    [pool.submit(self._decode, *item) for item in zip(positions.tolist(), cut, strict=True)]
                )
                if len(pending) > _AHEAD:
                    yield self._collected(pending.popleft())
            while pending:
                yield self._collected(pending.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _collected(self, crops: list[Future[Pixels]]) -> Tensor:
        """Wait for crops (S, S, 3) and return them as one tensor (B, 3, S, S)."""
        stacked = np.empty((len(crops), self.side, self.side, 3), dtype=np.uint8)
        for row, crop in zip(stacked, crops, strict=True):
            row[:] = crop.result()
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(self.device)

    def _decode(self, position: int, window: Array | None) -> Pixels:
        """Read one image and return its crop (S, S, 3)."""
        image = read_image(self.paths[position], digest=self.digests[position])
        return centre_crop(image, self.side) if window is None else window_crop(image, window, self.side)


def centre_crop(image: Pixels, side: int) -> Pixels:
    """Resize the shorter side of an image (H, W, 3) to 256 / 224 of `side`, and cut a square of `side` out.

    The longer side is first cut to the shorter one, which changes the result by half a pixel at most.
    """
    height, width = image.shape[:2]
    short, resized = min(height, width), round(side * _SHORTER_SIDE)
    top, left = (height - short) // 2, (width - short) // 2
    square = resize(image[top : top + short, left : left + short], (resized, resized), is_smooth=True)
    margin = (resized - side) // 2
    return square[margin : margin + side, margin : margin + side]


def window_crop(image: Pixels, window: Array, side: int) -> Pixels:
    """Resize a window of an image (H, W, 3) to a square of `side`.

    Args:
        image: Pixels (H, W, 3) uint8.
        window: Top, left, height and width in pixels, and 1 to mirror it or 0.
        side: Height and width of the result.
    """
    top, left, height, width, is_mirrored = (round(float(value)) for value in window)
    # A file that was replaced by a smaller image gives what the window contains of it, at least one pixel.
    top, left = min(top, image.shape[0] - 1), min(left, image.shape[1] - 1)
    crop = image[top : top + max(height, 1), left : left + max(width, 1)]
    resized = resize(crop, (side, side), is_smooth=True)
    return resized[:, ::-1] if is_mirrored else resized


def num_cores() -> int:
    """Return the number of cores that this process may use; in a container, often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
