"""Which samples make up which batch of an epoch, on which process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from utils.datasets.dataset import SampleKey
from utils.errors import ConfigError

Weights = np.ndarray[Any, np.dtype[np.float64]]

# Mosaic partners that a weighted sample carries along, drawn by the same weights.
_POOL_SIZE = 8


class BatchKeySampler(Sampler[list[SampleKey]]):
    """Lists of sample keys, one list per batch.

    The order of an epoch depends on the seed and the epoch alone. Global batch k holds positions k*B to (k+1)*B of
    it, and every process takes its contiguous share, so that the number of processes does not change the batches.
    With several processes a last batch that cannot be shared evenly is filled up from its own beginning.

    It lives in the parent process, so `set_epoch` reaches workers that persist.

    Args:
        shapes_hw: Height and width of each sample; those of a batch are alike.
        batch_size: Samples of a global batch, over all processes.
        shuffle: Draw a new order each epoch.
        seed: Of the order.
        rank: Of this process.
        world_size: Number of processes.

    Raises:
        ConfigError: The batch cannot be shared evenly.
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
            raise ConfigError(f"--batch-size {batch_size} cannot be shared by {world_size} processes; use a multiple")
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
        """Number of the epoch that the next iteration draws."""
        self._epoch = epoch

    def set_weights(self, weights: Weights | None) -> None:
        """Draw samples in proportion to `weights` (N,), with replacement; None draws each once.

        Raises:
            ValueError: Not one weight per sample, negative ones, or all zero.
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
                # A stream of its own: batches must not depend on how many samples this process draws for.
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
        """Global batches of an epoch, each of one shape."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for position in self._order(rng):
            groups[self._shapes_hw[position]].append(position)
        size = self._batch_size
        batches = [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]
        if self._shuffle and len(groups) > 1:
            batches = [batches[number] for number in rng.permutation(len(batches))]
        return batches

    def _share(self, batch: list[int]) -> list[int]:
        """This process's contiguous part of a global batch."""
        per_rank = -(-len(batch) // self._world_size)
        filled = [batch[number % len(batch)] for number in range(per_rank * self._world_size)]
        return filled[self._rank * per_rank : (self._rank + 1) * per_rank]
