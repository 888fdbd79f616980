"""`ChannelGraph`: every channel of a network is an integer id, and every layer is two lists of ids.

A layer lists the ids of its input and of its output channels. Channels that an addition, a gate or a group of a
convolution joins share one id. To prune is to choose ids to drop and to keep the rest of each list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from models.copies import twin_that_shares
from models.detector import Detector
from pruning.channels.groups import ChannelGroup, LayerChannels, channel_groups
from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import GROUPED
from pruning.channels.norms_after import NormAfter
from pruning.channels.recording import Recording
from pruning.channels.walk import record
from utils.errors import PruningError

# Two images, so that no batch of one can be mistaken for a channel or a position.
_BATCH = 2
_MIN_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class ChannelPart:
    """A slice, split or chunk along channels, whose indices must be adapted when channels are cut.

    Attributes:
        node: Name of the operator in the torch.fx graph.
        input_ids: Ids of the input channels (C,).
        output_ids: Channel ids of each output.
    """

    node: str
    input_ids: IntArray
    output_ids: tuple[IntArray, ...]


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """Which layers share which channels.

    Attributes:
        layers: Layers by module path, in order of execution; a layer that is used twice is listed once.
        protected: Id of each channel that must be kept, and the reason.
        parts: Operators that take channels by index.
        norms_after: Batch norms that read the output of a layer, by path of the layer; only for layers without a
            bias whose output no other operator reads.
        image_chw: Channels, height and width of the images that the network was traced on.
    """

    layers: Mapping[str, LayerChannels]
    protected: Mapping[int, str]
    parts: tuple[ChannelPart, ...]
    norms_after: Mapping[str, tuple[NormAfter, ...]]
    image_chw: tuple[int, int, int]

    @classmethod
    def of(cls, model: nn.Module, *, image_chw: tuple[int, int, int] | None = None) -> ChannelGraph:
        """Trace a network without changing it.

        Convolutions are executed only inside blocks that branch on data.

        Args:
            model: Network that takes one batch of images.
            image_chw: Channels, height and width of an image that the network accepts. None means 3 x 64 x 64, or
                the smallest size that a detector accepts if that is larger.

        Raises:
            PruningError: The network cannot be traced as a whole or does not accept such images.
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
        """Build the graph of a network by running it on `images`, with all ties resolved."""
        recording, norms_after = record(twin, images)
        if isinstance(twin, Detector):
            _protect_groups(recording)
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
        """Ids of channels that a layer produces and nothing protects, sorted (n,)."""
        made = [layer.output_ids for layer in self.layers.values() if not layer.is_norm]
        everything = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *made]))
        return np.setdiff1d(everything, np.fromiter(self.protected, dtype=np.int64, count=len(self.protected)))

    def is_prunable(self, ids: IntArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Return a mask of the channels that may be pruned (n,)."""
        return np.isin(ids, self.prunable_ids)

    def owners(self, channel: int) -> tuple[tuple[str, int], ...]:
        """Return each layer that produces or scales a channel, with the position in its output."""
        return tuple(
            (name, position)
            for name, layer in self.layers.items()
            for position in np.flatnonzero(layer.output_ids == channel).tolist()
        )

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Groups of channels that the same layers produce; every produced channel is in exactly one group."""
        return channel_groups(self.layers, self.protected)

    def as_text(self) -> str:
        """Return a listing for people: one line per channel group, then one per reason for keeping channels."""
        total = sum(len(group.ids) for group in self.groups)
        lines = [f"{len(self.layers)} layers produce {total} channels; {len(self.prunable_ids)} can be pruned"]
        for group in self.groups:
            mark = " (kept)" if group.reason else ""
            made, read = ", ".join(group.producers), ", ".join(group.consumers) or "no layer"
            lines.append(f"{len(group.ids)} channels {id_ranges(group.ids)}{mark}: {made} -> {read}")
        by_reason: dict[str, list[int]] = {}
        for channel, reason in self.protected.items():
            by_reason.setdefault(reason, []).append(channel)
        lines += [f"kept {id_ranges(np.array(ids))}: {reason}" for reason, ids in by_reason.items()]
        lines += [f"taken by index {id_ranges(part.input_ids)}: {part.node}" for part in self.parts]
        return "\n".join(lines)


def id_ranges(ids: IntArray) -> str:
    """Format ids as ranges, such as 3-9,12."""
    distinct = np.unique(ids)
    runs = np.split(distinct, np.flatnonzero(np.diff(distinct) > 1) + 1)
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs if len(run))


def _protect_groups(recording: Recording) -> None:
    """Protect the channels of convolutions of groups, whose number a detector's layer list fixes."""
    for name, layer in recording.layers.items():
        if layer.kind == GROUPED:
            recording.ids.protect(layer.input_ids, f"{name} is a convolution of groups, which the layer list counts")


def _default_image(model: nn.Module) -> tuple[int, int, int]:
    side = max(_MIN_SIDE, model.max_stride) if isinstance(model, Detector) else _MIN_SIDE
    return 3, side, side
