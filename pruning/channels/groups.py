"""Layers as lists of channel ids, and groups of channels that the same layers produce."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import BATCH_NORM, READS_ALL, weight_axes


@dataclass(frozen=True, kw_only=True)
class LayerChannels:
    """A layer that has weights per channel.

    Attributes:
        name: Module path.
        kind: "conv", "transposed", "depthwise", "grouped", "linear" or "batch_norm".
        input_ids: Id of each input channel (C_in,), in the order of the weights; ids may repeat.
        output_ids: Id of each output channel (C_out,); for a batch norm the same as `input_ids`.
        is_called: Whether the network calls the module itself, and not a function with its parameters.
    """

    name: str
    kind: str
    input_ids: IntArray
    output_ids: IntArray
    is_called: bool = True

    @property
    def reads_all(self) -> bool:
        """Whether each output channel has weights for every input channel."""
        return self.kind in READS_ALL

    @property
    def weight_axes(self) -> tuple[int, int]:
        """Dimensions of the weight along which outputs and inputs lie; there are inputs only where all are read."""
        return weight_axes(self.kind)

    @property
    def is_norm(self) -> bool:
        """Whether the layer is a batch norm, which scales channels and produces none."""
        return self.kind == BATCH_NORM


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that the same layers produce: a channel is cut in all of these layers or in none.

    Attributes:
        ids: Channel ids, sorted (n,).
        producers: Paths of the convolutions and linear layers that produce the channels, in order of execution.
        norms: Paths of the batch norms that scale some of the channels.
        consumers: Paths of the layers that read some of the channels.
        reason: Reason why some or all of the channels must be kept; None if all can be pruned.
    """

    ids: IntArray
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    reason: str | None


def channel_groups(layers: Mapping[str, LayerChannels], protected: Mapping[int, str]) -> tuple[ChannelGroup, ...]:
    """Group all channels by the set of layers that produce them, in order of execution."""
    weighted = [layer for layer in layers.values() if not layer.is_norm]
    norms = _layers_by_id((layer.name, layer.output_ids) for layer in layers.values() if layer.is_norm)
    consumers = _layers_by_id((layer.name, layer.input_ids) for layer in weighted)
    members: dict[tuple[str, ...], list[int]] = {}
    for channel, makers in _layers_by_id((layer.name, layer.output_ids) for layer in weighted).items():
        members.setdefault(makers, []).append(channel)
    order = {name: index for index, name in enumerate(layers)}

    def listing(layers_by_id: Mapping[int, tuple[str, ...]], ids: Iterable[int]) -> tuple[str, ...]:
        distinct = {layers_by_id.get(channel, ()) for channel in ids}
        return tuple(sorted({name for names in distinct for name in names}, key=order.__getitem__))

    return tuple(
        ChannelGroup(
            ids=np.array(ids, dtype=np.int64),
            producers=makers,
            norms=listing(norms, ids),
            consumers=listing(consumers, ids),
            reason=next((protected[channel] for channel in ids if channel in protected), None),
        )
        for makers, ids in members.items()
    )


def _layers_by_id(lists: Iterable[tuple[str, IntArray]]) -> dict[int, tuple[str, ...]]:
    """Map each id to the paths of the layers that list it, ids sorted."""
    listed = [(name, np.unique(ids)) for name, ids in lists]
    # Ids with one label are in the same lists so far; each list divides the labels that it meets.
    labels = np.zeros(max((int(ids[-1]) + 1 for _, ids in listed if len(ids)), default=0), dtype=np.int64)
    paths: list[tuple[str, ...]] = [()]
    for name, ids in listed:
        met, places = np.unique(labels[ids], return_inverse=True)
        labels[ids] = len(paths) + places
        paths += [(*paths[label], name) for label in met.tolist()]
    present = np.flatnonzero(labels)
    return {channel: paths[label] for channel, label in zip(present.tolist(), labels[present].tolist(), strict=True)}
