"""Choose the channels to drop from their importance: thresholds, least widths, rounding, and cost targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.selection.rounding import Rounding
from utils.errors import ConfigError, PruningError

# Precision of a share that is searched for; finer than one channel of the widest usual layer.
_SHARE_STEP = 1 / 4096


def ranked_ids(candidates: IntArray, importance: FloatArray) -> IntArray:
    """Return the candidates (n,) whose importance (num_ids,) is known: a layer without batch norm has no gammas."""
    return candidates[~np.isnan(importance[candidates])]


def ranks_among(candidates: IntArray, importance: FloatArray) -> FloatArray:
    """Return the rank of each candidate (n,), least important first, ties by id: (num_ids,), else NaN."""
    ranks = np.full(len(importance), np.nan)
    ranks[candidates[np.argsort(importance[candidates], kind="stable")]] = np.arange(len(candidates))
    return ranks


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The highest threshold that leaves every layer at least one channel, and the share of candidates below it."""

    threshold: float
    percent: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The choice of channels to drop.

    Attributes:
        dropped: Ids of the dropped channels, sorted (n,).
        threshold: Importance below which channels are dropped, except for least widths and rounding.
        raised: Paths of the layers that would have kept fewer than the least number of channels.
    """

    dropped: IntArray
    threshold: float
    raised: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Allocator:
    """Chooses the channels to drop by importance, with one threshold for the whole network.

    Channels that the same layers produce are decided together: their count is the output width of these layers.

    Attributes:
        graph: Channels of the network.
        importance: Importance by channel id (num_ids,); NaN where unknown.
        candidates: Ids that may be dropped (n,), all of known importance; see `ranked_ids`.
        rounding: Rounding of the number of channels that layers share, protected ones counted.
        min_channels: Fewest of these channels to keep.
        min_share: Least share of these channels to keep, 0 to 1.
        least: Fewest channels to keep of those that layers share, by the smallest of their ids.
        widths: Allowed widths of channels that layers share, ascending, by the smallest of their ids; where they are
            given, only the direction of `rounding` counts.
    """

    graph: ChannelGraph
    importance: FloatArray
    candidates: IntArray
    rounding: Rounding = field(default_factory=Rounding)
    min_channels: int = 1
    min_share: float = 0.0
    least: Mapping[int, int] = field(default_factory=dict)
    widths: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert not np.isnan(self.importance[self.candidates]).any(), "candidates of unknown importance"
        if not len(self.candidates):
            raise PruningError("no channel of this network can be pruned; use --shortcuts tied or fewer --protect")
        if self.min_channels < 1:
            raise ConfigError(f"--min-channels {self.min_channels}: expected at least 1")
        widest = max(total for _, _, total in self._groups)
        if self.rounding.unit > widest:
            raise ConfigError(
                f"--round {self.rounding.unit} exceeds every width: the widest layer to prune has {widest} channels; "
                f"use at most {widest}"
            )

    @cached_property
    def _order(self) -> IntArray:
        """Candidates, least important first, ties by id (n,)."""
        return self.candidates[np.argsort(self.importance[self.candidates], kind="stable")]

    @cached_property
    def _values(self) -> FloatArray:
        """Importance of the candidates in ascending order (n,)."""
        values: FloatArray = self.importance[self._order]
        return values

    @cached_property
    def _groups(self) -> tuple[tuple[IntArray, IntArray, int], ...]:
        """Candidates of each channel group: their ids, their positions in the order, and the size of the group."""
        places = np.full(len(self.importance), -1, dtype=np.int64)
        places[self._order] = np.arange(len(self._order))
        groups = []
        for group in self.graph.groups:
            own = np.sort(places[group.ids])
            own = own[own >= 0]
            if len(own):
                groups.append((self._order[own], own, len(group.ids)))
        return tuple(groups)

    @cached_property
    def _first_ids(self) -> dict[int, int]:
        """The smallest id of the group of each produced channel."""
        return {int(channel): int(group.ids[0]) for group in self.graph.groups for channel in group.ids}

    def _first_id(self, ids: IntArray) -> int:
        """Return the smallest id of the group of these channels (n,)."""
        return self._first_ids[int(ids[0])]

    @cached_property
    def limit(self) -> Limit:
        """Highest threshold at which no layer loses all of its channels."""
        largest = [
            float(self.importance[ids[-1]])
            for ids, _, total in self._groups
            if len(ids) == total and not self.least.get(self._first_id(ids))
        ]
        values = self.importance[self.candidates]
        threshold = min(largest, default=float(values.max()))
        return Limit(threshold=threshold, percent=float((values < threshold).mean()))

    def threshold_at(self, percent: float) -> float:
        """Return the importance below which this share of the candidates lies.

        Raises:
            ConfigError: `percent` is not in [0, 1).
        """
        if not 0 <= percent < 1:
            raise ConfigError(f"--percent {percent}: expected a share from 0 up to, not including, 1, such as 0.5")
        return float(self._values[int(percent * len(self._values))])

    def at(self, threshold: float) -> Allocation:
        """Drop the channels below the threshold, then correct widths."""
        return self._without(int(np.searchsorted(self._values, threshold, side="left")), threshold=threshold)

    def _without(self, count: int, *, threshold: float) -> Allocation:
        """Drop the `count` least important candidates, then correct widths."""
        dropped, raised = [], []
        for ids, places, total in self._groups:
            below = int(np.searchsorted(places, count, side="left"))
            first = self._first_id(ids)
            share = max(math.ceil(self.min_share * total), self.least.get(first, 0))
            least = max(min(self.min_channels, total), share)
            allowed = self.widths.get(first)
            width = self.rounding.apply(total - below, total=total, least=least, widths=allowed)
            if total - below < least and share < least:
                raised.append(self.graph.owners(int(ids[0]))[0][0])
            # Rounding down may ask for more than there are candidates; protected channels are kept.
            dropped.append(ids[: min(total - width, len(ids))])
        gone = np.sort(np.concatenate(dropped))
        return Allocation(dropped=self._leave_inputs(gone), threshold=threshold, raised=tuple(raised))

    @property
    def smallest(self) -> Allocation:
        """The smallest network that the least widths allow."""
        return self._without(len(self._values), threshold=float("inf"))

    def uniform_share(self, cost: Callable[[IntArray], float], target: float) -> float:
        """Return the share of its channels that every layer may keep for the network to cost no more than `target`.

        Args:
            cost: Function that returns the cost of the network without the given ids.
            target: Highest cost, in the unit of `cost`; if it cannot be reached, the share is 0.
        """
        low, high = 0.0, 1.0
        while high - low > _SHARE_STEP:
            middle = (low + high) / 2
            if cost(replace(self, min_share=middle).smallest.dropped) <= target:
                low = middle
            else:
                high = middle
        return low

    def at_cost(self, cost: Callable[[IntArray], float], target: float, *, what: str) -> Allocation:
        """Drop the fewest channels with which the network costs no more than `target`.

        Args:
            cost: Function that returns the cost of the network without the given ids.
            target: Highest cost, in the unit of `cost`.
            what: Quantity, such as "MACs" or "parameters", for messages.

        Raises:
            PruningError: Not even the smallest possible network reaches the target.
        """
        values = self._values
        smallest = cost(self.smallest.dropped)
        if smallest > target:
            raise PruningError(
                f"target of {target:.4g} {what} cannot be reached with these roundings, least widths and protected "
                f"channels; the nearest is {smallest:.4g}; lower --min-channels or --round, "
                f"{'raise --limit, ' if self.least else ''}or use --shortcuts tied"
            )
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2
            if cost(self._without(middle, threshold=0.0).dropped) <= target:
                high = middle
            else:
                low = middle + 1
        threshold = float(values[high]) if high < len(values) else float("inf")
        return self._without(high, threshold=threshold)

    def _leave_inputs(self, dropped: IntArray) -> IntArray:
        """Keep the best channel of each layer, and of each slice, that would otherwise be left with none.

        This happens only where something reads a part of a layer's channels, since no layer loses all it produces.
        """
        needed = [ids for layer in self.graph.layers.values() for ids in (layer.input_ids, layer.output_ids)]
        needed += [ids for part in self.graph.parts for ids in part.output_ids]
        gone = np.zeros(len(self.importance), dtype=bool)
        gone[dropped] = True
        for ids in needed:
            if len(ids) and gone[ids].all():
                gone[ids[np.argmax(self.importance[ids])]] = False
        return np.flatnonzero(gone)
