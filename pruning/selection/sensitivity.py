"""Measure what a network loses if one layer alone is pruned, to know which layers to limit."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from engine.evaluation.evaluator import label
from pruning.channels.ids import IntArray
from pruning.selection.planner import Planner
from pruning.surgery.cut import cut
from utils.errors import CheckpointError, PruningError
from utils.plots.layers import plot_layer_losses
from utils.storage.files import write_json

LOGGER = logging.getLogger(__name__)

# File of a run folder with what was measured.
SENSITIVITY_NAME = "sensitivity.json"

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

    @property
    def name(self) -> str:
        """Name for people: the first layer, and how many others are cut with it."""
        others = len(self.layers) - 1
        return f"{self.layers[0]} +{others}" if others else self.layers[0]

    def as_text(self) -> str:
        """Return one line for people."""
        scores = ", ".join(f"{label(name)} {value:.3f}" for name, value in self.headline.items())
        return f"{self.name} without {self.pruned} of {self.channels} channels: {scores}"

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


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Content of sensitivity.json: what was measured so far.

    Attributes:
        fingerprint: Fingerprint of the network.
        dense: Scores of the network without any cut, by name; the last one decides.
        rows: Scores with one layer pruned, in the order of the network.
    """

    fingerprint: str
    dense: Mapping[str, float]
    rows: tuple[LayerScore, ...] = ()

    @property
    def metric(self) -> str:
        """Name of the score that decides, for people."""
        return label(list(self.dense)[-1])

    @property
    def score(self) -> float:
        """The score of the network without any cut that decides."""
        return list(self.dense.values())[-1]

    def save(self, folder: Path) -> None:
        """Write it into the run folder."""
        rows = [row.to_dict() for row in self.rows]
        write_json(
            folder / SENSITIVITY_NAME, {"fingerprint": self.fingerprint, "dense": dict(self.dense), "rows": rows}
        )

    @classmethod
    def load(cls, folder: Path) -> Sensitivity:
        """Read what `save` wrote.

        Raises:
            CheckpointError: The file is damaged.
        """
        path = folder / SENSITIVITY_NAME
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "rows": tuple(LayerScore.from_dict(row) for row in values["rows"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error!r}); run prune.py --sensitivity anew") from None

    @classmethod
    def of_uncut(cls, planner: Planner, measure: Measure) -> Sensitivity:
        """Measure the network without any cut.

        Raises:
            PruningError: It finds nothing, so that there is nothing to lose.
        """
        found = cls(fingerprint=planner.fingerprint, dense=dict(measure(planner.model)))
        if found.score <= 0:
            raise PruningError(
                f"the network has {found.metric} {found.score:.3f} on this data before any channel is cut, so no "
                "layer can lose any; check --data and --img-size"
            )
        return found

    def missing(self, cuts: Sequence[LayerCut]) -> list[LayerCut]:
        """Return the cuts that were not measured."""
        done = {(row.layers, row.share) for row in self.rows}
        return [item for item in cuts if (item.layers, item.share) not in done]

    def by_share(self) -> dict[float, dict[str, float]]:
        """Return what is lost of the score, by share and then by layer, in the order of the network."""
        losses: dict[float, dict[str, float]] = {share: {} for share in sorted({row.share for row in self.rows})}
        for row in self.rows:
            losses[row.share][row.name] = self.score - row.score
        return losses

    def as_text(self) -> str:
        """Return a line for each layer: its score by share pruned, and the loss; what loses most comes first."""
        losses = self.by_share()
        worst: dict[str, float] = {}
        channels: dict[str, int] = {}
        for row in self.rows:
            name, lost = row.name, self.score - row.score
            worst[name], channels[name] = max(lost, worst.get(name, lost)), row.channels
        width = max(len(name) for name in channels)
        lines = [f"{'layer':{width}}  channels" + "".join(f"{share:>17.0%}" for share in losses)]
        for name in sorted(worst, key=worst.__getitem__, reverse=True):
            cells = [self._cell(by_layer.get(name)) for by_layer in losses.values()]
            lines.append(f"{name:{width}}  {channels[name]:8}{''.join(cells)}")
        return "\n".join([f"{self.metric} {self.score:.4f} without a cut; with one layer pruned:", *lines])

    def _cell(self, lost: float | None) -> str:
        return f"{'-':>17}" if lost is None else f"{self.score - lost:9.4f} {-lost:+7.4f}"

    def plot(self, path: Path) -> None:
        """Plot a bar for each layer and share."""
        losses = {f"{share:.0%} pruned": by_layer for share, by_layer in self.by_share().items()}
        plot_layer_losses(losses, path, what=f"{self.metric} lost with this layer alone pruned")


def measured(
    found: Sensitivity, planner: Planner, measure: Measure, *, shares: Sequence[float], carry: bool
) -> Iterator[Sensitivity]:
    """Cut one layer at a time from the uncut network, measure it, and yield what was found so far.

    Args:
        found: Scores so far, which are yielded first.
        planner: Planner of the network.
        measure: Function that measures a network.
        shares: Shares of the channels of a layer to prune.
        carry: Whether to carry the constants of cut channels into the layers that read them.
    """
    yield found
    cuts = layer_cuts(planner, shares)
    missing = found.missing(cuts)
    began = time.monotonic()
    for done, item in enumerate(missing, start=1):
        network = cut(planner.model, planner.graph, item.dropped, carry=carry)
        row = LayerScore(
            layers=item.layers,
            channels=item.channels,
            share=item.share,
            pruned=len(item.dropped),
            headline=dict(measure(network)),
        )
        found = replace(found, rows=(*found.rows, row))
        minutes = (time.monotonic() - began) / 60 * (len(missing) - done) / done
        number = len(cuts) - len(missing) + done
        LOGGER.info("%d of %d: %s, %.1f min left", number, len(cuts), row.as_text(), minutes)
        yield found
