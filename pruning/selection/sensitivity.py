"""Measure what a network loses if one layer alone is pruned, to know which layers to limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from pruning.channels.ids import IntArray
from pruning.selection.planner import Planner
from pruning.surgery.cut import cut

# Returns the scores of a network, by name; the last one decides.
Measure = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class LayerCut:
    """One layer, or the layers that produce the same channels, pruned alone.

    Attributes:
        layers: Paths of the layers, in order of execution.
        channels: Channels that they produce.
        share: Share of the channels to prune that was asked for.
        dropped: Ids of the least important channels, as many as the share allows (n,).
    """

    layers: tuple[str, ...]
    channels: int
    share: float
    dropped: IntArray


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """Scores of a network of which one layer is pruned.

    Attributes:
        layers: Paths of the layers that produce the same channels, in order of execution.
        channels: Channels that they produce.
        share: Share of the channels to prune that was asked for.
        pruned: Channels pruned.
        headline: Scores by name; the last one decides.
    """

    layers: tuple[str, ...]
    channels: int
    share: float
    pruned: int
    headline: Mapping[str, float]

    @property
    def score(self) -> float:
        """The score that decides, such as mAP50-95 or accuracy."""
        return list(self.headline.values())[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerScore:
        """Rebuild from `to_dict`.

        Raises:
            TypeError, KeyError: Fields are missing, or there are unknown ones.
        """
        return cls(**{**values, "layers": tuple(values["layers"])})


def layer_cuts(planner: Planner, shares: Sequence[float]) -> list[LayerCut]:
    """Return the cuts of each layer that may be pruned, alone, by shares in ascending order.

    At least one channel is kept; a share that prunes none, or as many as a smaller one, is left out.

    Args:
        planner: Planner of the network, whose importance decides between the channels of a layer.
        shares: Shares of the channels of a layer to prune.
    """
    importance = planner.allocator.importance
    cuts = []
    for group in planner.graph.groups:
        free = group.ids[np.isin(group.ids, planner.allocator.candidates)]
        free = free[np.argsort(importance[free], kind="stable")]
        most = min(len(free), len(group.ids) - 1)
        counts: dict[int, float] = {}
        for share in sorted(shares):
            count = min(most, int(share * len(group.ids) + 1e-9))
            if count:
                counts.setdefault(count, share)
        cuts += [
            LayerCut(layers=group.producers, channels=len(group.ids), share=share, dropped=np.sort(free[:count]))
            for count, share in counts.items()
        ]
    return cuts


def layer_scores(
    planner: Planner, cuts: Sequence[LayerCut], measure: Measure, *, carry: bool
) -> Iterator[LayerScore]:
    """Cut the network as each of `cuts` says, from its uncut state, and yield the scores, without any training.

    Args:
        planner: Planner of the network.
        cuts: Cuts to measure.
        measure: Function that measures a network.
        carry: Whether to carry the constants of cut channels into the layers that read them.
    """
    for item in cuts:
        network = cut(planner.model, planner.graph, item.dropped, carry=carry)
        yield LayerScore(
            layers=item.layers,
            channels=item.channels,
            share=item.share,
            pruned=len(item.dropped),
            headline=dict(measure(network)),
        )
