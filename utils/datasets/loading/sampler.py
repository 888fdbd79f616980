"""Assignment of samples to the batches of an epoch and to processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from utils.datasets.loading.dataset import SampleKey
from utils.errors import ConfigError

Weights = np.ndarray[Any, np.dtype[np.float64]]

# Number of candidate mosaic partners in the key of a weighted sample, drawn by the same weights.
_POOL_SIZE = 8


class BatchKeySampler(Sampler[list[SampleKey]]):
    """A sampler of lists of sample keys, one list per batch.

    The order of an epoch depends only on the seed and the epoch. Global batch k contains positions k*B to (k+1)*B of
    it, and every process takes its contiguous share, so that the number of processes does not change the batches.
    With several processes a last batch that cannot be split evenly is filled up from its own beginning.

    The sampler runs in the parent process, so `set_epoch` takes effect for persistent workers.

    Args:
        shapes_hw: Height and width of each sample; all samples of a batch have the same.
        batch_size: Samples in a global batch, over all processes.
        shuffle: Whether to draw a new order each epoch.
        seed: Seed of the order.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        ConfigError: The batch cannot be split evenly among the processes.
    """

    def __init__(
        self,
        shapes_hw: Sequence[tuple[int, int]],
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise ConfigError(f"--batch-size {batch_size} cannot be split by {world_size} processes; use a multiple")
        self._shapes_hw = tuple(shapes_hw)
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._epoch = 0
        self._weights: Weights | None = None

    def __len__(self) -> int:
        if self._weights is not None and len(set(self._shapes_hw)) > 1:
            return len(self._batches(self._generator()))
        counts: dict[tuple[int, int], int] = defaultdict(int)
        for shape in self._shapes_hw:
            counts[shape] += 1
        return sum(-(-count // self._batch_size) for count in counts.values())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self._epoch = epoch

    def set_weights(self, weights: Weights | None) -> None:
        """Draw samples in proportion to `weights` (N,), with replacement; None draws each once.

        Raises:
            ValueError: The number of weights differs from that of samples, one is negative, or all are zero.
        """
        if weights is not None:
            weights = np.asarray(weights, np.float64)
            if weights.shape != (len(self._shapes_hw),) or not (weights >= 0).all() or not weights.sum() > 0:
                raise ValueError(f"weights: expected {len(self._shapes_hw)} numbers >= 0, not all 0")
            weights = weights / weights.sum()
        self._weights = weights

    def __iter__(self) -> Iterator[list[SampleKey]]:
        rng, epoch = self._generator(), self._epoch
        for batch in self._batches(rng):
            mine = self._share(batch)
            if self._weights is None:
                yield [(epoch, position) for position in mine]
            else:
                # A separate generator, so that batches do not depend on this process's number of samples.
                pools = np.random.default_rng((self._seed, epoch, *mine))
                draws = pools.choice(len(self._shapes_hw), (len(mine), _POOL_SIZE), p=self._weights)
                yield [(epoch, position, *pool) for position, pool in zip(mine, draws.tolist(), strict=True)]

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng((self._seed, self._epoch))

    def _order(self, rng: np.random.Generator) -> list[int]:
        count = len(self._shapes_hw)
        if self._weights is not None:
            return list(rng.choice(count, count, p=self._weights).tolist())
        return list(rng.permutation(count).tolist() if self._shuffle else range(count))

    def _batches(self, rng: np.random.Generator) -> list[list[int]]:
        """Return the global batches of an epoch, each of one shape."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position in self._order(rng):
            groups[self._shapes_hw[position]].append(position)
        size = self._batch_size
        batches = [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
        if self._shuffle and len(groups) > 1:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return batches

    def _share(self, batch: list[int]) -> list[int]:
        """Return the contiguous part of a global batch for this process."""
        per_rank = -(-len(batch) // self._world_size)
        filled = [batch[number % len(batch)] for number in range(per_rank * self._world_size)]
        return filled[self._rank * per_rank : (self._rank + 1) * per_rank]
