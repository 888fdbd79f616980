"""`ChannelGraph`: every channel of a network as an integer, and every layer as two lists of them.

A layer owns the ids it reads and the ids it makes. Channels that are joined by an addition, a gate or a depthwise
convolution are one id. Pruning is then: choose ids to drop, keep the rest of each list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from models.detector import Detector
from pruning.channel_ids import IntArray
from pruning.groups import ChannelGroup, LayerChannels, channel_groups
from pruning.norms_after import NormAfter
from pruning.walk import record
from utils.errors import PruningError
from utils.twins import twin_that_shares

# Two images, so that no batch of one can be mistaken for a channel or a position.
_BATCH = 2
_MIN_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class ChannelPart:
    """A slice, split or chunk along channels: its numbers hold for the network as it is and must follow a cut.

    Attributes:
        node: Its name in the torch.fx graph.
        input_ids: Ids it reads (C,).
        output_ids: Ids of each of its outputs.
    """

    node: str
    input_ids: IntArray
    output_ids: tuple[IntArray, ...]


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """Which layers share which channels.

    Attributes:
        layers: By module path, in order of execution; a layer that is used twice is here once.
        protected: Id of each channel that must stay, and why.
        parts: Operators that take channels by their number.
        norms_after: By path of each layer without a bias whose output goes to batch norms alone: those.
        image_chw: Of the images it was traced on.
    """

    layers: Mapping[str, LayerChannels]
    protected: Mapping[int, str]
    parts: tuple[ChannelPart, ...]
    norms_after: Mapping[str, tuple[NormAfter, ...]]
    image_chw: tuple[int, int, int]

    @classmethod
    def of(cls, model: nn.Module, *, image_chw: tuple[int, int, int] | None = None) -> ChannelGraph:
        """Trace a network. It is not changed; its convolutions are run only in blocks that branch on data.

        Args:
            model: Takes one batch of images.
            image_chw: Channels, height and width of an image it can take; 3 x 64 x 64 or what a detector needs
                where None.

        Raises:
            PruningError: The network as a whole cannot be traced, or not with such images.
        """
        image_chw = image_chw or _default_image(model)
        shape = (_BATCH, *image_chw)
        images = torch.zeros(shape).to(next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0)))
        try:
            return cls._traced(twin_that_shares(model), images)
        except RuntimeError as error:
            size, cause = " x ".join(map(str, shape[1:])), str(error).strip().split("\n")[0]
            raise PruningError(
                f"{type(model).__name__} cannot be traced on images of {size} ({cause}); give the size it takes"
            ) from error

    @classmethod
    def _traced(cls, twin: nn.Module, images: torch.Tensor) -> ChannelGraph:
        """The graph of a network that may be run on such images, all ties resolved."""
        recording, norms_after = record(twin, images)
        labels = recording.ids.labels()
        layers = {
            name: LayerChannels(
                name=name, kind=layer.kind, input_ids=labels[layer.input_ids], output_ids=labels[layer.output_ids]
            )
            for name, layer in recording.layers.items()
        }
        parts = tuple(
            ChannelPart(
                node=node, input_ids=labels[part.input_ids], output_ids=tuple(labels[ids] for ids in part.output_ids)
            )
            for node, part in recording.parts.items()
        )
        channels, height, width = images.shape[1:]
        return cls(
            layers=layers,
            protected=recording.ids.protected(labels),
            parts=parts,
            norms_after=norms_after,
            image_chw=(channels, height, width),
        )

    @cached_property
    def prunable_ids(self) -> IntArray:
        """Ids that a layer makes and nothing protects, sorted (n,)."""
        made = [layer.output_ids for layer in self.layers.values() if not layer.is_norm]
        everything = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *made]))
        return np.setdiff1d(everything, np.fromiter(self.protected, dtype=np.int64, count=len(self.protected)))

    def is_prunable(self, ids: IntArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of these channels may be cut (n,)."""
        return np.isin(ids, self.prunable_ids)

    def owners(self, channel: int) -> tuple[tuple[str, int], ...]:
        """Each layer that makes or scales a channel, with the position in its output."""
        return tuple(
            (name, position)
            for name, layer in self.layers.items()
            for position in np.flatnonzero(layer.output_ids == channel).tolist()
        )

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Which layers make the same channels; every channel that a layer makes is in one group."""
        return channel_groups(self.layers, self.protected)

    def as_text(self) -> str:
        """For people: one line per group of channels, then one per reason why channels stay."""
        total = sum(len(group.ids) for group in self.groups)
        lines = [f"{len(self.layers)} layers make {total} channels; {len(self.prunable_ids)} can be pruned"]
        for group in self.groups:
            mark = " (stay)" if group.reason else ""
            made, read = ", ".join(group.producers), ", ".join(group.consumers) or "no layer"
            lines.append(f"{len(group.ids)} channels {id_ranges(group.ids)}{mark}: {made} -> {read}")
        by_reason: dict[str, list[int]] = {}
        for channel, reason in self.protected.items():
            by_reason.setdefault(reason, []).append(channel)
        lines += [f"stay {id_ranges(np.array(ids))}: {reason}" for reason, ids in by_reason.items()]
        lines += [f"taken by number {id_ranges(part.input_ids)}: {part.node}" for part in self.parts]
        return "\n".join(lines)


def id_ranges(ids: IntArray) -> str:
    """Ids as ranges: 3-9,12."""
    distinct = np.unique(ids)
    runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run))


def _default_image(model: nn.Module) -> tuple[int, int, int]:
    side = max(_MIN_SIDE, model.max_stride) if isinstance(model, Detector) else _MIN_SIDE
    return 3, side, side
