"""Cost of a network without some of its channels, counted without cutting it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from models.complexity import count_parameters, macs_of_uses, weight_uses
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import FloatArray, IntArray
from pruning.channels.layer_rules import BATCH_NORM
from pruning.choices import CountedQuantity


@dataclass(frozen=True, kw_only=True)
class ChannelCost:
    """Parameters and multiply-adds as functions of the dropped channels; exact for the cut network.

    Attributes:
        lists: Concatenated channel ids (n,): the input ids of each of the L layers of the graph, then the output
            ids of each layer.
        starts: Position at which each list starts (2 L,).
        reads_all: Whether each output channel of a layer has weights for every input channel (L,).
        unit: Weights per output channel, and per input channel where `reads_all` (L,).
        vectors: Further parameters per output channel, such as a bias or the scale and shift of a norm (L,).
        uses: Multiply-adds per weight for one image (L,).
        other_parameters: Parameters of the rest of the network.
        other_macs: Multiply-adds of convolutions and linear layers that are not in the graph.
    """

    lists: IntArray
    starts: IntArray
    reads_all: IntArray
    unit: IntArray
    vectors: IntArray
    uses: IntArray
    other_parameters: int
    other_macs: int

    @classmethod
    def of(cls, model: nn.Module, graph: ChannelGraph, image_chw: tuple[int, int, int]) -> ChannelCost:
        """Count parameters and multiply-adds of a network once.

        Args:
            model: Network that takes one batch of images; it is not changed.
            graph: Channels of the network.
            image_chw: Channels, height and width of the image that multiply-adds are counted for.
        """
        scales = _scales(model, graph)
        layers = [*graph.layers.values(), *scales]
        lists = [layer.input_ids for layer in layers] + [layer.output_ids for layer in layers]
        uses = weight_uses(model, image_chw)
        modules = [model.get_submodule(name) for name in graph.layers]
        alone = cls(
            lists=np.concatenate([np.empty(0, dtype=np.int64), *lists]),
            starts=np.cumsum([0, *map(len, lists)])[:-1],
            reads_all=np.array([layer.reads_all for layer in layers]),
            unit=np.array([*map(_unit, graph.layers.values(), modules), *(0 for _ in scales)]),
            vectors=np.array([*map(_vectors, modules), *(1 for _ in scales)]),
            uses=np.array([uses.get(layer.name, 0) for layer in layers]),
            other_parameters=0,
            other_macs=0,
        )
        return replace(
            alone,
            other_parameters=count_parameters(model) - alone.parameters(),
            other_macs=macs_of_uses(model, uses) - alone.macs(),
        )

    def macs(self, dropped: IntArray | None = None) -> int:
        """Return the multiply-adds for one image without these channel ids (n,), as `count_macs` counts them."""
        weights, _ = self._weights(dropped)
        return int(weights @ self.uses) + self.other_macs

    def parameters(self, dropped: IntArray | None = None) -> int:
        """Return the number of parameters without these channel ids (n,)."""
        weights, outputs = self._weights(dropped)
        return int(weights.sum() + outputs @ self.vectors) + self.other_parameters

    def of_channels(self, quantity: CountedQuantity) -> FloatArray:
        """Return the saving from dropping each channel alone, by id (num_ids,); 0 for an id that no layer uses."""
        count, lengths = len(self.unit), np.diff(np.append(self.starts, len(self.lists)))
        inputs, outputs = lengths[:count], lengths[count:]
        uses, vectors = (self.uses, 0) if quantity == "macs" else (1, self.vectors)
        as_input = np.where(self.reads_all, outputs, 0) * self.unit * uses
        as_output = np.where(self.reads_all, inputs, 1) * self.unit * uses + vectors
        saved = np.zeros(self.lists.max(initial=-1) + 1)
        np.add.at(saved, self.lists, np.repeat(np.concatenate([as_input, as_output]), lengths))
        return saved

    def _weights(self, dropped: IntArray | None) -> tuple[IntArray, IntArray]:
        """Return the weights and the output channels of each layer, (L,) each."""
        stays = np.ones(self.lists.max(initial=-1) + 1, dtype=np.int64)
        if dropped is not None:
            stays[dropped] = 0
        inputs, outputs = np.add.reduceat(stays[self.lists], self.starts).reshape(2, -1)
        return outputs * self.unit * np.where(self.reads_all, inputs, 1), outputs


def per_cost(importance: FloatArray, saved: FloatArray, *, power: float, least: float = 1.0) -> FloatArray:
    """Divide importance (num_ids,) by what dropping each channel saves, to this power; power 0 leaves it unchanged.

    Savings below `least` count as `least`, so that channels which save nothing rank as very important.

    If channels were independent, power 1 would lose the least importance for the cost saved. Importance that was
    normalised per layer compares layers less well; a power of .5 measured best there.
    """
    return importance / np.maximum(saved, least) ** power


def _unit(layer: LayerChannels, module: nn.Module) -> int:
    """Return the weights per output channel, and per input channel if the layer reads all; 0 for a norm."""
    if layer.is_norm:
        return 0
    weight = module.get_parameter("weight")
    return weight.numel() // (len(layer.output_ids) * (len(layer.input_ids) if layer.reads_all else 1))


def _scales(model: nn.Module, graph: ChannelGraph) -> list[LayerChannels]:
    """List the parameters with one value per channel that belong to no layer, as norms by their names."""
    own = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] not in graph.layers}
    return [
        LayerChannels(name=name, kind=BATCH_NORM, input_ids=channels.ids, output_ids=channels.ids)
        for name, channels in graph.stored.items()
        if name in own
    ]


def _vectors(module: nn.Module) -> int:
    """Count the parameter vectors of a module, which have one value per output channel."""
    return sum(parameter.ndim == 1 for parameter in module.parameters(recurse=False))
