"""The loader: batches from worker processes, in an order that depends only on the seed and the epoch."""

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

from utils.datasets.loading.batch import Batch
from utils.datasets.loading.dataset import DetectionDataset, Sample, SampleKey
from utils.datasets.loading.sampler import BatchKeySampler, Weights
from utils.datasets.loading.workers import WorkerPool

logger = logging.getLogger(__name__)

BatchKeys = list[SampleKey]

# In bytes; Docker gives a container 64 MB.
_USUAL_SHARED_MEMORY = 128 * 2**20


class Loader:
    """Iterator over the batches of one epoch.

    Args:
        dataset: Source of the samples.
        sampler: Sampler that yields the keys of each batch.
        make_batch: Function that builds a batch from its keys.
        workers: Number of processes that build batches; 0 builds them in this process.
        pin_memory: Whether to return page-locked memory.
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
        """Return the number of batches in an epoch."""
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches with uint8 images.

        Raises:
            DataError: An image cannot be read.
            WorkerError: A loading process died.
        """
        self.start_workers()
        batches = (self._pool.results if self._pool else self._alone)(self._sampler)
        return _pinned(batches) if self._is_pinning else batches

    def start_workers(self) -> None:
        """Start the worker processes now.

        A forked worker keeps the memory that its parent has at that moment, so one that is started early remains
        small.
        """
        if self._pool is not None:
            self._pool.start()

    def _alone(self, keys: Iterable[BatchKeys]) -> Iterator[Batch]:
        return map(self._make_batch, keys)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws, which also seeds its augmentation."""
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
        dataset: Source of the samples; its seed is also the seed of the order.
        batch_size: Images in a batch, over all processes together.
        workers: Most worker processes; no more are started than this process has cores or the epoch has batches. 0
            loads in this process.
        rank: Rank of this process.
        world_size: Number of processes.
        shuffle: Whether to draw a new order each epoch.
        quad: Whether to build batches of a quarter of the images at twice the size, see `quad_collate`.
        pin_memory: Whether to return page-locked memory, for copies to a GPU.
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
    """Stack samples of one shape; the new first column of targets is the position of their image in the batch."""
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
    """Turn each four samples into one of twice the size: all four side by side or the first enlarged, at random.

    v5.0 trains this way at a larger size with the loader of a smaller one. The choice depends only on the samples in
    the group, so it is the same after a resume. A last group of fewer than four repeats its samples.
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
    """Map the boxes (n, 5) of an image that becomes a quarter of another one."""
    return (targets + torch.tensor([0, column, row, 0, 0])) * torch.tensor([1, 0.5, 0.5, 0.5, 0.5])


class _BatchMaker:
    """A callable that builds the samples of a batch and collates them."""

    def __init__(self, dataset: DetectionDataset, collate_samples: Callable[[Sequence[Sample]], Batch]) -> None:
        self._dataset, self._collate = dataset, collate_samples

    def __call__(self, keys: BatchKeys) -> Batch:
        return self._collate([self._dataset[key] for key in keys])


def _pinned(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Copy batches to page-locked memory in a thread, one batch ahead of the one in use."""

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
    """Log once that batches do not use shared memory, if it is too small for loaders that do."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return
    stat = os.statvfs(folder)
    size = stat.f_blocks * stat.f_frsize
    if size < _USUAL_SHARED_MEMORY:
        logger.info(
            "/dev/shm has only %.2g MB; batches do not use it (docker run --shm-size=1g enlarges it for others)",
            size / 2**20,
        )


def _num_cores() -> int:
    """Return the number of cores that this process may use; in a container, often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
