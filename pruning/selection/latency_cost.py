"""Predicted milliseconds of a network without some of its channels, and the widths that are fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import ChannelGroup
from pruning.channels.ids import FloatArray, IntArray
from pruning.selection.latency import LatencyTable, LayerTimes
from pruning.selection.latency_layers import TimedLayer, timed_layers


@dataclass(frozen=True, kw_only=True, eq=False)
class LatencyCost:
    """Milliseconds as a function of the dropped channels.

    Attributes:
        table: Times that the prediction adds up.
        layers: Every call of a layer (L,).
        times: Times of each of them (L,).
    """

    table: LatencyTable
    layers: tuple[TimedLayer, ...]
    times: tuple[LayerTimes, ...]

    @classmethod
    def of(
        cls, model: nn.Module, graph: ChannelGraph, image_chw: tuple[int, int, int], table: LatencyTable
    ) -> LatencyCost:
        """Look up every layer of a network once.

        Args:
            model: Network that takes one batch of images; it is not changed.
            graph: Channels of the network.
            image_chw: Channels, height and width of the image that the table was measured for.
            table: Times of the layers.

        Raises:
            ConfigError: The table lacks a layer, or does not reach its widths; the message says which.
        """
        layers = timed_layers(model, graph, image_chw)
        times = tuple(
            table.times_of(
                layer.kind,
                name=layer.name,
                inputs=layer.inputs(len(layer.input_ids)),
                outputs=len(layer.output_ids),
            )
            for layer in layers
        )
        return cls(table=table, layers=layers, times=times)

    def milliseconds(self, dropped: IntArray | None = None) -> float:
        """Return the predicted time of one image without these channel ids (n,)."""
        inputs, outputs = self.widths(dropped)
        layers = sum(self._time(index, inputs[index], outputs[index]) for index in range(len(self.layers)))
        return layers + self.table.fixed_ms + self.table.ms_per_value * float(outputs @ self._positions)

    def values(self, dropped: IntArray | None = None) -> float:
        """Return how many values all layers write for one image without these channel ids (n,)."""
        return float(self.widths(dropped)[1] @ self._positions)

    def widths(self, dropped: IntArray | None) -> tuple[IntArray, IntArray]:
        """Return the input and output widths of each layer without these channel ids (n,): (L,) each."""
        keeps = np.ones(self._num_ids, dtype=np.int64)
        if dropped is not None:
            keeps[dropped] = 0
        inputs = [layer.inputs(int(keeps[layer.input_ids].sum())) for layer in self.layers]
        outputs = [int(keeps[layer.output_ids].sum()) for layer in self.layers]
        return np.array(inputs), np.array(outputs)

    def of_channels(self) -> FloatArray:
        """Return what dropping a channel saves, by id (num_ids,).

        Times fall in steps, so a single channel may save nothing or even cost something. What counts is the mean
        saving per channel over half of the layer's channels.
        """
        saved = np.zeros(self._num_ids)
        inputs, outputs = self.widths(None)
        for index, layer in enumerate(self.layers):
            now = self._time(index, inputs[index], outputs[index])
            half = outputs[index] // 2
            by_output = (now - self._time(index, inputs[index], half)) / max(outputs[index] - half, 1)
            rest = self.table.ms_per_value * layer.positions
            np.add.at(saved, layer.output_ids, max(by_output, 0.0) + max(rest, 0.0))
            if layer.kind.group == (0, 0):
                half = inputs[index] // 2
                by_input = (now - self._time(index, half, outputs[index])) / max(inputs[index] - half, 1)
                np.add.at(saved, layer.input_ids, max(by_input, 0.0) / layer.ids_per_input)
        return saved

    def fast_widths(self, groups: Sequence[ChannelGroup]) -> dict[int, tuple[int, ...]]:
        """Return the fast widths of each group, see `fast_widths_of`, by the smallest of its ids."""
        return {int(group.ids[0]): self.fast_widths_of(group) for group in groups}

    def fast_widths_of(self, group: ChannelGroup) -> tuple[int, ...]:
        """Return the widths of a channel group that no larger width is as fast as, ascending; all channels included.

        The layers that produce and consume the group are timed at each measured width, the others being unchanged.
        """
        ids, total = np.sort(group.ids), len(group.ids)
        touched = [
            index
            for index, layer in enumerate(self.layers)
            if np.isin(layer.output_ids, ids).any() or np.isin(layer.input_ids, ids).any()
        ]
        fast, least = [total], self._time_of(touched, ids[total:])
        for width in sorted(self._candidates(touched, ids), reverse=True):
            ms = self._time_of(touched, ids[width:])
            if ms < least:
                fast, least = [width, *fast], ms
        return tuple(fast)

    def _candidates(self, touched: list[int], ids: IntArray) -> set[int]:
        """Return the measured widths of the layers that produce a group, below the number of its channels."""
        found: set[int] = set()
        for index in touched:
            layer = self.layers[index]
            if np.isin(layer.output_ids, ids).any():
                found |= {width // (layer.kind.group[1] or 1) for width in self.times[index].outputs}
        return {width for width in found if 0 < width < len(ids)}

    def _time_of(self, indices: list[int], dropped: IntArray) -> float:
        inputs, outputs = self.widths(dropped)
        return sum(self._time(index, inputs[index], outputs[index]) for index in indices)

    def _time(self, index: int, inputs: int, outputs: int) -> float:
        return self.times[index].at(float(inputs), float(outputs))

    @cached_property
    def _positions(self) -> IntArray:
        return np.array([layer.positions for layer in self.layers])

    @cached_property
    def _num_ids(self) -> int:
        return 1 + max(int(ids.max()) for layer in self.layers for ids in (layer.input_ids, layer.output_ids))
