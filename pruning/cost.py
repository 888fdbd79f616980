"""What a network costs without some of its channels, counted without cutting it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import nn

from pruning.channel_ids import FloatArray, IntArray
from pruning.graph import ChannelGraph
from pruning.groups import LayerChannels
from pruning.layer_rules import CONV, LINEAR
from utils.complexity import count_parameters, macs_of_uses, weight_uses

CostQuantity = Literal["macs", "params"]


@dataclass(frozen=True, kw_only=True)
class ChannelCost:
    """Parameters and multiply-adds as functions of the channels dropped; exact for the cut network.

    Counts are per layer of the graph (L,). `lists` holds the ids each layer reads, then those it makes, one list
    after the other (n,), and `starts` where each begins (2 L,).

    Attributes:
        lists: Channel ids.
        starts: First position of each list.
        reads_all: Whether each output channel has weights for every input channel.
        unit: Weights per output channel, and per input channel where it reads all of them.
        vectors: Parameters per output channel besides: a bias, the scale and shift of a norm.
        uses: Multiply-adds per weight for one image.
        other_parameters: Those of all else in the network.
        other_macs: Those of convolutions and linear layers the graph does not follow.
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
        """Count a network once.

        Args:
            model: Takes one batch of images; it is not changed.
            graph: Its channels.
            image_chw: Channels, height and width of the image that multiply-adds are counted for.
        """
        layers = list(graph.layers.values())
        lists = [layer.input_ids for layer in layers] + [layer.output_ids for layer in layers]
        uses = weight_uses(model, image_chw)
        modules = [model.get_submodule(layer.name) for layer in layers]
        alone = cls(
            lists=np.concatenate([np.empty(0, dtype=np.int64), *lists]),
            starts=np.cumsum([0, *map(len, lists)])[:-1],
            reads_all=np.array([layer.kind in (CONV, LINEAR) for layer in layers]),
            unit=np.array([_unit(layer, module) for layer, module in zip(layers, modules, strict=True)]),
            vectors=np.array([_vectors(module) for module in modules]),
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
        """Multiply-adds for one image without these channel ids (n,), as `count_macs` counts them."""
        weights, _ = self._weights(dropped)
        return int(weights @ self.uses) + self.other_macs

    def parameters(self, dropped: IntArray | None = None) -> int:
        """Parameters without these channel ids (n,)."""
        weights, outputs = self._weights(dropped)
        return int(weights.sum() + outputs @ self.vectors) + self.other_parameters

    def of_channels(self, quantity: CostQuantity) -> FloatArray:
        """What the network saves by each channel alone, by id (num_ids,); 0 for one that nothing makes or reads."""
        count, lengths = len(self.unit), np.diff(np.append(self.starts, len(self.lists)))
        inputs, outputs = lengths[:count], lengths[count:]
        uses, vectors = (self.uses, 0) if quantity == "macs" else (1, self.vectors)
        as_input = np.where(self.reads_all, outputs, 0) * self.unit * uses
        as_output = np.where(self.reads_all, inputs, 1) * self.unit * uses + vectors
        saved = np.zeros(self.lists.max(initial=-1) + 1)
        np.add.at(saved, self.lists, np.repeat(np.concatenate([as_input, as_output]), lengths))
        return saved

    def _weights(self, dropped: IntArray | None) -> tuple[IntArray, IntArray]:
        """Numbers in each layer's weight, and its output channels, (L,) each."""
        stays = np.ones(self.lists.max(initial=-1) + 1, dtype=np.int64)
        if dropped is not None:
            stays[dropped] = 0
        inputs, outputs = np.add.reduceat(stays[self.lists], self.starts).reshape(2, -1)
        return outputs * self.unit * np.where(self.reads_all, inputs, 1), outputs


def per_cost(importance: FloatArray, cost: ChannelCost, quantity: CostQuantity, *, power: float) -> FloatArray:
    """Importance (num_ids,) divided by what each channel costs, to this power; 0 leaves it as it is.

    With power 1, cutting by it gives up the least importance for what is saved, were channels independent. Importance
    that was normalised per layer says less of layers among each other; a power of .5 measured best there.
    """
    return importance / np.maximum(cost.of_channels(quantity), 1) ** power


def _unit(layer: LayerChannels, module: nn.Module) -> int:
    """Weights per output channel, and per input channel where the layer reads all of them; a norm has none."""
    if layer.is_norm:
        return 0
    weight = module.get_parameter("weight")
    return weight.numel() // (len(weight) * (weight.shape[1] if layer.kind in (CONV, LINEAR) else 1))


def _vectors(module: nn.Module) -> int:
    """Parameters of one number per output channel."""
    return sum(parameter.ndim == 1 for parameter in module.parameters(recurse=False))
