"""From importance to the channels that go: thresholds, least widths, rounding, and cost targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pruning.channel_ids import FloatArray, IntArray
from pruning.graph import ChannelGraph
from pruning.rounding import Rounding
from utils.errors import ConfigError, PruningError


def ranked_ids(candidates: IntArray, importance: FloatArray) -> IntArray:
    """The candidates (n,) whose importance (num_ids,) is known: a layer without batch norm has no gammas."""
    return candidates[~np.isnan(importance[candidates])]


def ranks_among(candidates: IntArray, importance: FloatArray) -> FloatArray:
    """The place of each candidate (n,) among them, least important first, equal ones by id: (num_ids,), else NaN."""
    ranks = np.full(len(importance), np.nan)
    ranks[candidates[np.argsort(importance[candidates], kind="stable")]] = np.arange(len(candidates))
    return ranks


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The highest threshold that leaves every layer a channel, and the share of candidates below it."""

    threshold: float
    percent: float


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Which channels go.

    Attributes:
        dropped: Ids, sorted (n,).
        threshold: Channels of lower importance go, but for least widths and rounding.
        raised: Layers that would have kept fewer than the least number of channels.
    """

    dropped: IntArray
    threshold: float
    raised: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Allocator:
    """Decides by importance, one threshold for the whole network.

    Channels that the same layers make are decided together: their number is the width these layers put out.

    Attributes:
        graph: The network's channels.
        importance: By channel id (num_ids,); NaN where unknown.
        candidates: Ids that may go (n,), all of known importance; see `ranked_ids`.
        rounding: Of the number of channels that layers share, protected ones counted.
        min_channels: Fewest that stay of them.
    """

    graph: ChannelGraph
    importance: FloatArray
    candidates: IntArray
    rounding: Rounding = field(default_factory=Rounding)
    min_channels: int = 1

    def __post_init__(self) -> None:
        assert not np.isnan(self.importance[self.candidates]).any(), "candidates of unknown importance"
        if not len(self.candidates):
            raise PruningError("no channel of this network may be pruned; use --shortcuts tied or fewer --protect")
        if self.min_channels < 1:
            raise ConfigError(f"--min-channels {self.min_channels}: expected at least 1")
        widest = max(total for _, _, total in self._groups)
        if self.rounding.unit > widest:
            raise ConfigError(
                f"--round {self.rounding.unit} would keep more than there is: the widest layer to prune has {widest} "
                f"channels; use at most {widest}"
            )

    @cached_property
    def _order(self) -> IntArray:
        """Candidates, least important first; equal ones by id."""
        return self.candidates[np.argsort(self.importance[self.candidates], kind="stable")]

    @cached_property
    def _values(self) -> FloatArray:
        """Importance of the candidates in that order."""
        values: FloatArray = self.importance[self._order]
        return values

    @cached_property
    def _groups(self) -> tuple[tuple[IntArray, IntArray, int], ...]:
        """For candidates that share their makers: ids, places in the order, and channels of these makers."""
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
    def limit(self) -> Limit:
        """How far the threshold can rise before some layer loses all of its channels."""
        largest = [float(self.importance[ids[-1]]) for ids, _, total in self._groups if len(ids) == total]
        values = self.importance[self.candidates]
        threshold = min(largest, default=float(values.max()))
        return Limit(threshold=threshold, percent=float((values < threshold).mean()))

    def threshold_at(self, percent: float) -> float:
        """The importance below which this share of the candidates lies.

        Raises:
            ConfigError: `percent` is not in [0, 1).
        """
        if not 0 <= percent < 1:
            raise ConfigError(f"--percent {percent}: expected a share from 0 up to, not including, 1, such as 0.5")
        return float(self._values[int(percent * len(self._values))])

    def at(self, threshold: float) -> Allocation:
        """Drop what lies below the threshold, then mend widths."""
        return self._without(int(np.searchsorted(self._values, threshold, side="left")), threshold=threshold)

    def _without(self, count: int, *, threshold: float) -> Allocation:
        """Drop the `count` least important candidates, then mend widths."""
        dropped, raised = [], []
        for ids, places, total in self._groups:
            below = int(np.searchsorted(places, count, side="left"))
            least = min(self.min_channels, total)
            width = self.rounding.apply(total - below, total=total, least=least)
            if total - below < least:
                raised.append(self.graph.owners(int(ids[0]))[0][0])
            # Rounded down, more may go than there are candidates: protected channels stay.
            dropped.append(ids[: min(total - width, len(ids))])
        gone = np.sort(np.concatenate(dropped))
        return Allocation(dropped=self._leave_inputs(gone), threshold=threshold, raised=tuple(raised))

    def at_cost(self, cost: Callable[[IntArray], float], target: float, *, what: str) -> Allocation:
        """Drop the fewest channels with which the network costs no more than `target`.

        Args:
            cost: Of the network without these ids.
            target: In the unit of `cost`.
            what: "MACs" or "parameters", for messages.

        Raises:
            PruningError: Not even the smallest network reaches it.
        """
        values = self._values
        smallest = cost(self._without(len(values), threshold=float("inf")).dropped)
        if smallest > target:
            raise PruningError(
                f"target of {target:.4g} {what} cannot be reached with these roundings, least widths and protected "
                f"channels; the nearest is {smallest:.4g}; lower --min-channels or --round, or use --shortcuts tied"
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
        """Bring back the best channel of a layer, or of a slice, that would otherwise be left with none.

        Only where something reads a part of a layer's channels: the whole of them never goes.
        """
        needed = [ids for layer in self.graph.layers.values() for ids in (layer.input_ids, layer.output_ids)]
        needed += [ids for part in self.graph.parts for ids in part.output_ids]
        gone = np.zeros(len(self.importance), dtype=bool)
        gone[dropped] = True
        for ids in needed:
            if len(ids) and gone[ids].all():
                gone[ids[np.argmax(self.importance[ids])]] = False
        return np.flatnonzero(gone)
