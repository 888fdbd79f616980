"""`ChannelGraph`: every channel of a network is an integer id, and every layer is two lists of ids.

A layer lists the ids of its input and of its output channels. Channels that an addition, a gate or a group of a
convolution joins share one id. To prune is to choose ids to drop and to keep the rest of each list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import nn

from models.blocks.mobilenet import SqueezeExcite
from models.copies import twin_that_shares
from models.detector import Detector
from pruning.channels.groups import ChannelGroup, LayerChannels, channel_groups
from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import GROUPED, LINEAR
from pruning.channels.norms_after import NormAfter
from pruning.channels.recording import Channels, PartRecord, Recording
from pruning.channels.walk import record
from utils.errors import PruningError

# Two images, so that no batch of one can be mistaken for a channel or a position.
_BATCH = 2
_MIN_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class ChannelPart:
    """An operator whose code holds channel numbers, which must be adapted when channels are cut.

    Attributes:
        node: Name of the operator in the torch.fx graph.
        record: Kind, place and resolved ids of the numbers.
    """

    node: str
    record: PartRecord

    @property
    def input_ids(self) -> IntArray:
        """Ids of the input channels (C,)."""
        return self.record.input_ids

    @property
    def output_ids(self) -> tuple[IntArray, ...]:
        """Channel ids of each output."""
        return self.record.output_ids


@dataclass(frozen=True, kw_only=True)
class ChannelGraph:
    """Which layers share which channels.

    Attributes:
        layers: Layers by module path, in order of execution; a layer that is used twice is listed once.
        protected: Id of each channel that must be kept, and the reason.
        parts: Operators whose code holds channel numbers.
        stored: Channels of parameters and buffers outside of layers, by name.
        norms_after: Batch norms that read the output of a layer, by path of the layer; only for layers without a
            bias whose output no other operator reads.
        input_shapes: Shape of each input that the network was traced on, without the images of a batch.
    """

    layers: Mapping[str, LayerChannels]
    protected: Mapping[int, str]
    parts: tuple[ChannelPart, ...]
    stored: Mapping[str, Channels]
    norms_after: Mapping[str, tuple[NormAfter, ...]]
    input_shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        image_chw: tuple[int, int, int] | None = None,
        input_shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> ChannelGraph:
        """Trace a network without changing it.

        Convolutions are executed only inside blocks that branch on data.

        Args:
            model: Network that takes batches of images, or of other tensors whose second dimension are channels.
            image_chw: Channels, height and width of an image that the network accepts. None means 3 x 64 x 64, or
                the smallest size that a detector accepts if that is larger.
            input_shapes: Shape of each input without the images of a batch, for a network of several inputs or other
                ones than images; in place of `image_chw`.

        Raises:
            PruningError: The network cannot be traced as a whole or does not accept such images.
        """
        _refuse_wrapper(model)
        shapes = tuple(map(tuple, input_shapes)) if input_shapes else (image_chw or _default_image(model),)
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        inputs = [torch.zeros(_BATCH, *shape).to(like) for shape in shapes]
        try:
            recording, norms_after = record(twin_that_shares(model), inputs)
        except RuntimeError as error:
            size = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
            cause = str(error).strip().split("\n")[0]
            raise PruningError(
                f"{type(model).__name__} cannot be traced on images of {size} ({cause}); give the size it takes"
            ) from error
        if isinstance(model, Detector):
            _protect_what_no_spec_tells(model, recording)
        is_code_kept = isinstance(model, Detector) or getattr(model, "is_stored_by_name", False)
        if is_code_kept:
            _tie_counted(recording)
        labels = recording.ids.labels()
        _settle_counts(recording, labels, is_code_kept=is_code_kept)
        if is_code_kept:
            _protect_numbers_in_code(recording)
        return cls._resolved(recording, labels, norms_after, shapes)

    @classmethod
    def _resolved(
        cls,
        recording: Recording,
        labels: IntArray,
        norms_after: Mapping[str, tuple[NormAfter, ...]],
        shapes: tuple[tuple[int, ...], ...],
    ) -> ChannelGraph:
        """Build the graph of a recording with all ties resolved, given the label of each id."""
        layers = {
            name: LayerChannels(
                name=name,
                kind=layer.kind,
                input_ids=labels[layer.input_ids],
                output_ids=labels[layer.output_ids],
                is_called=layer.is_called,
            )
            for name, layer in recording.layers.items()
        }
        parts = tuple(
            ChannelPart(
                node=node,
                record=replace(
                    part, input_ids=labels[part.input_ids], output_ids=tuple(labels[ids] for ids in part.output_ids)
                ),
            )
            for node, part in recording.parts
        )
        return cls(
            layers=layers,
            protected=recording.ids.protected(labels),
            parts=parts,
            stored={name: replace(each, ids=labels[each.ids]) for name, each in recording.stored.items()},
            norms_after=norms_after,
            input_shapes=shapes,
        )

    @property
    def image_chw(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the network was traced on."""
        channels, height, width = self.input_shapes[0]
        return channels, height, width

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


def _settle_counts(recording: Recording, labels: IntArray, *, is_code_kept: bool) -> None:
    """See to it that sizes which are computed from counts of channels hold after a cut.

    One whose channels are cut as those that are counted follows by itself. Another becomes a number in the code, or
    if that must stay as it is, all of these channels are protected.
    """
    for size in recording.counts:
        counted, times = np.unique(labels[size.count.ids], return_counts=True)
        own, own_times = np.unique(labels[size.ids], return_counts=True)
        scale = size.count.scale
        if np.array_equal(counted, own) and np.array_equal(times * scale.numerator, own_times * scale.denominator):
            continue
        if size.place is None or is_code_kept:
            for each in (size.count.ids, size.ids):
                recording.ids.protect(each, f"{size.node} computes a size from the number of other channels")
            continue
        both = np.concatenate([size.ids, size.count.ids])
        record = PartRecord(kind="size", axis=size.place, input_ids=both, output_ids=(size.ids,))
        recording.parts.append((size.node, record))


def _protect_what_no_spec_tells(model: Detector, recording: Recording) -> None:
    """Protect channels of which a detector's layer list has no number: of groups, and of attention."""
    for name, layer in recording.layers.items():
        if layer.kind == GROUPED:
            recording.ids.protect(layer.input_ids, f"{name} is a convolution of groups, which the layer list counts")
        if layer.kind == LINEAR and not isinstance(model.get_submodule(name.rpartition(".")[0]), SqueezeExcite):
            recording.ids.protect(layer.output_ids, f"{name} has a width that no layer list tells")


def _tie_counted(recording: Recording) -> None:
    """Tie channels whose size is the number of other channels with these, so that the code need not change."""
    for size in recording.counts:
        if size.count.scale == 1 and size.count.ids.shape == size.ids.shape:
            recording.ids.tie(size.count.ids, size.ids)


def _protect_numbers_in_code(recording: Recording) -> None:
    """Protect channels whose number is written in the code of a network, of which checkpoints hold the name alone."""
    for node, part in recording.parts:
        if part.kind in ("size", "constant"):
            recording.ids.protect(part.input_ids, f"{node} has their number in the code, which no checkpoint holds")


def _refuse_wrapper(model: nn.Module) -> None:
    """Refuse a network inside of another form, which has it under a name."""
    if isinstance(model, torch.jit.ScriptModule):
        raise PruningError("TorchScript cannot be pruned; give the network that it was made from")
    for name, kind in {"module": "DataParallel", "_orig_mod": "OptimizedModule"}.items():
        if type(model).__name__ in (kind, f"Distributed{kind}"):
            raise PruningError(f"a network in {type(model).__name__} cannot be pruned; give its .{name}")


def _default_image(model: nn.Module) -> tuple[int, int, int]:
    side = max(_MIN_SIDE, model.max_stride) if isinstance(model, Detector) else _MIN_SIDE
    return 3, side, side
