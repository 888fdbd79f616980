"""The loader: batches from worker processes, in an order that only the seed and the epoch decide."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.batch import Batch
from utils.datasets.dataset import DetectionDataset, Sample, SampleKey
from utils.datasets.sampler import BatchKeySampler, Weights
from utils.datasets.workers import WorkerPool

logger = logging.getLogger(__name__)

BatchKeys = list[SampleKey]

# Bytes; Docker gives a container 64 MB.
_USUAL_SHARED_MEMORY = 128 * 2**20


class Loader:
    """Iterates over the batches of one epoch.

    Args:
        dataset: Where samples come from.
        sampler: Which samples make up a batch.
        make_batch: Makes a batch of its keys.
        workers: Processes that do so; 0 does it in this one.
        pin_memory: Return page-locked memory.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        sampler: BatchKeySampler,
        *,
        make_batch: Callable[[BatchKeys], Batch],
        workers: int,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self._sampler, self._make_batch = sampler, make_batch
        self._pool = WorkerPool(make_batch, size=workers) if workers else None
        self._is_pinning = pin_memory

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Batches with uint8 images.

        Raises:
            DataError: An image cannot be read.
            WorkerError: A loading process died.
        """
        self.start_workers()
        batches = (self._pool.results if self._pool else self._alone)(self._sampler)
        return _pinned(batches) if self._is_pinning else batches

    def start_workers(self) -> None:
        """Start the worker processes now.

        A forked worker keeps what its parent holds at that moment; started while the parent is still small, it stays
        small.
        """
        if self._pool is not None:
            self._pool.start()

    def _alone(self, keys: Iterable[BatchKeys]) -> Iterator[Batch]:
        return map(self._make_batch, keys)

    def set_epoch(self, epoch: int) -> None:
        """Number of the epoch that the next iteration draws; also seeds its augmentation."""
        self._sampler.set_epoch(epoch)

    def set_image_weights(self, weights: Weights | None) -> None:
        """Draw images in proportion to `weights` (N,), with replacement; None draws each once."""
        self._sampler.set_weights(weights)


def build_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int,
    workers: int = 8,
    rank: int = 0,
    world_size: int = 1,
    shuffle: bool = False,
    quad: bool = False,
    pin_memory: bool = False,
) -> Loader:
    """Build a loader.

    Args:
        dataset: Where samples come from; its seed is the loader's.
        batch_size: Images of a batch over all processes together.
        workers: Worker processes at most; no more are started than there are cores for this process or batches. 0
            loads in this process.
        rank: Of this process.
        world_size: Number of processes.
        shuffle: Draw a new order each epoch.
        quad: Make batches of a quarter of the images at twice the size, see `quad_collate`.
        pin_memory: Return page-locked memory, for copies to a GPU.
    """
    if workers:
        _report_small_shared_memory()
    shapes = [dataset.output_hw(position) for position in range(len(dataset))]
    sampler = BatchKeySampler(
        shapes, batch_size=batch_size, shuffle=shuffle, seed=dataset.seed, rank=rank, world_size=world_size
    )
    return Loader(
        dataset,
        sampler,
        make_batch=_BatchMaker(dataset, quad_collate if quad else collate),
        workers=min(workers, max(1, _num_cores() // world_size), len(sampler)),
        pin_memory=pin_memory and torch.cuda.is_available(),
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one shape; targets get the position of their image in the batch as first column."""
    targets = [
        torch.cat([torch.full((len(sample.targets), 1), float(position)), sample.targets], dim=1)
        for position, sample in enumerate(samples)
    ]
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets=torch.cat(targets),
        infos=tuple(sample.info for sample in samples),
    )


def quad_collate(samples: Sequence[Sample]) -> Batch:
    """Each four samples become one of twice the size: all four side by side, or the first enlarged, by chance.

    v5.0's way to train at a larger size with the loader of a smaller one. The chance depends on which samples meet,
    so it is the same after a resume. A last group of fewer than four repeats its samples.
    """
    groups = [list(samples[start : start + 4]) for start in range(0, len(samples), 4)]
    return collate([_quad((group * 4)[:4]) for group in groups])


def _quad(group: list[Sample]) -> Sample:
    first = group[0]
    rng = np.random.default_rng([sample.info.index for sample in group])
    if rng.random() < 0.5:
        larger = F.interpolate(first.image[None].float(), scale_factor=2, mode="bilinear", align_corners=False)
        left, top = first.info.padding
        info = replace(first.info, scale=first.info.scale * 2, padding=(left * 2, top * 2))
        return Sample(image=larger[0].round().to(torch.uint8), targets=first.targets, info=info)
    rows = [torch.cat([group[i].image, group[i + 1].image], dim=2) for i in (0, 2)]
    targets = [_quarter(sample.targets, i % 2, i // 2) for i, sample in enumerate(group)]
    return Sample(image=torch.cat(rows, dim=1), targets=torch.cat(targets), info=first.info)


def _quarter(targets: Tensor, column: int, row: int) -> Tensor:
    """Boxes (n, 5) of a picture that becomes a quarter of another."""
    return (targets + torch.tensor([0, column, row, 0, 0])) * torch.tensor([1, 0.5, 0.5, 0.5, 0.5])


class _BatchMaker:
    """Makes the samples of a batch and collates them."""

    def __init__(self, dataset: DetectionDataset, collate_samples: Callable[[Sequence[Sample]], Batch]) -> None:
        self._dataset, self._collate = dataset, collate_samples

    def __call__(self, keys: BatchKeys) -> Batch:
        return self._collate([self._dataset[key] for key in keys])


def _pinned(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Copy batches to page-locked memory in a thread, one ahead of the one in use."""

    def next_pinned() -> Batch | None:
        batch = next(batches, None)
        return None if batch is None else batch.pin_memory()

    # A new thread would pin memory for the first GPU, whichever this process uses.
    device = (torch.cuda.current_device(),)
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=device) as thread:
        ahead = thread.submit(next_pinned)
        while (batch := ahead.result()) is not None:
            ahead = thread.submit(next_pinned)
            yield batch


@lru_cache(maxsize=1)
def _report_small_shared_memory() -> None:
    """Say once where batches go when shared memory is too small for what people expect of it."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    stat = os.statvfs(folder)
    size = stat.f_blocks * stat.f_frsize
    if size < _USUAL_SHARED_MEMORY:
        logger.info(
            "/dev/shm has only %.2g MB; batches do without it (docker run --shm-size=1g enlarges it for others)",
            size / 2**20,
        )


def _num_cores() -> int:
    """Cores this process may use; a container often gives fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
