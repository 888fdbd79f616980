"""Cache of resized images in memory, as bytes, shared by all worker processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from utils.datasets.reading.images import Pixels

logger = logging.getLogger(__name__)

# Share of the free memory that images may take; the rest is for training.
_MEMORY_SHARE = 0.7
_MEBIBYTE = 2**20


class ImageCache:
    """All images of a data set in one block of memory.

    The block is filled before worker processes are forked from this one, so that they share its pages; one block
    instead of many arrays keeps reference counts, which change with every access, out of those pages.

    Args:
        shapes_hw: Height and width of each image.
        load: Function that returns an image (H, W, 3) uint8 by position; called from several threads.
        workers: Number of threads.
    """

    def __init__(
        self, shapes_hw: Sequence[tuple[int, int]], load: Callable[[int], Pixels], *, workers: int = 8
    ) -> None:
        self._shapes_hw = shapes_hw
        self._ends = np.cumsum([height * width * 3 for height, width in shapes_hw])
        self._block = np.empty(int(self._ends[-1]), np.uint8)
        with ThreadPoolExecutor(workers) as pool:
            for position, image in enumerate(pool.map(load, range(len(shapes_hw)))):
                self[position][:] = image
        logger.info("cached %d images in %.0f MB of memory", len(shapes_hw), self._block.nbytes / _MEBIBYTE)

    def __getitem__(self, position: int) -> Pixels:
        """Return the image (H, W, 3); it is not a copy and must not be changed."""
        height, width = self._shapes_hw[position]
        end = int(self._ends[position])
        return self._block[end - height * width * 3 : end].reshape(height, width, 3)


def fits_in_memory(shapes_hw: Sequence[tuple[int, int]]) -> bool:
    """Return whether images of these sizes can be cached; log a warning if not."""
    needed = sum(height * width * 3 for height, width in shapes_hw)
    available = available_memory()
    if needed <= available * _MEMORY_SHARE:
        return True
    logger.warning(
        "images are not cached: they need %.0f MB, and %.0f MB of memory are free; lower --img-size to cache them",
        needed / _MEBIBYTE,
        available / _MEBIBYTE,
    )
    return False


def available_memory() -> int:
    """Return the bytes available without swapping, within the container's limit if there is one."""
    limits = [_meminfo_available()]
    group = Path("/sys/fs/cgroup")
    maximum, used = group / "memory.max", group / "memory.current"
    if maximum.exists() and used.exists() and maximum.read_text().strip().isdigit():
        limits.append(int(maximum.read_text()) - int(used.read_text()))
    return min(limits)


def _meminfo_available() -> int:
    """Return Linux's `MemAvailable` in bytes; on other systems it is unknown and taken as unlimited."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 2**62
