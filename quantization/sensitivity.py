"""Measure the loss when one layer alone is quantised, and choose bits for each layer from it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import nn

from quantization.choices import Part
from quantization.network import QuantizedNetwork
from quantization.ranges.bits import BitPlan
from quantization.ranges.config import LayerBits, QuantConfig, check_bits
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

# Higher is better: accuracy or mAP.
Metric: TypeAlias = Callable[[nn.Module], float]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The effect of quantising one layer.

    Attributes:
        layer: Name of a node with weights.
        bits: Bits of its weights, of the values it reads, or both; the rest was not quantised.
        metric: Metric of the network.
        loss: Difference by which the metric is worse than without quantisation.
    """

    layer: str
    bits: int
    metric: float
    loss: float


def sensitivities(
    network: QuantizedNetwork, metric: Metric, *, bits: Sequence[int], part: Part = "both"
) -> list[Sensitivity]:
    """Measure a network with one layer at a time quantised.

    Args:
        network: Calibrated network; its mode, bits and scales are restored at the end.
        metric: Function that measures the network on data.
        bits: Numbers of bits to try for each layer.
        part: Part of the layer to quantise: its weights, the values it reads, or both.

    Returns:
        One row for each layer and number of bits, in the order of the network.

    Raises:
        ConfigError: `bits` is empty, or contains a number outside 2 to 16.
    """
    if not bits:
        raise ConfigError("sensitivity: no numbers of bits are given; give some from 2 to 16")
    for number in bits:
        check_bits(number, what="bits to try")
    mode, planned, grids = network.mode, network.bits, network.held_grids
    rows = []
    try:
        network.mode = "float"
        dense = metric(network)
        network.mode = "fake"
        for layer in network.graph.layers:
            for number in bits:
                network.set_bits_(only_layer(network, layer, bits=number, part=part))
                found = metric(network)
                rows.append(Sensitivity(layer=layer, bits=number, metric=found, loss=dense - found))
                logger.info("%s in %d bits: %.4f, %+.4f", layer, number, found, found - dense)
    finally:
        network.mode = mode
        network.set_bits_(planned, grids=grids)
    return rows


def only_layer(network: QuantizedNetwork, layer: str, *, bits: int, part: Part = "both") -> BitPlan:
    """Build the plan that quantises one layer alone, in all its uses."""
    graph = network.graph
    uses = {node.name for node in graph.uses(layer)}
    sources = {graph.scale_of(graph.nodes[use].inputs[0]) for use in uses}
    of_weights = {name: bits if name in uses and part != "activations" else None for name in graph.weighted}
    of_values = {name: bits if name in sources and part != "weights" else None for name in graph.scaled}
    return BitPlan(weights=of_weights, values=of_values)


def weight_bytes(network: QuantizedNetwork, bits: Mapping[str, int]) -> float:
    """Return the bytes of all weights with these bits for each layer, without biases and scales."""
    return sum(network.weights(name)[0].numel() * number / 8 for name, number in bits.items())


def mixed_precision(network: QuantizedNetwork, table: Sequence[Sensitivity], *, budget_bytes: float) -> QuantConfig:
    """Choose bits for each layer's weights so that all fit in a budget with the least loss of the metric.

    The search is greedy: starting from the most bits in the table, the layer that loses least per byte saved gets
    fewer bits, until the weights fit. Losses are assumed to add up.

    Args:
        network: Network that the table was measured on.
        table: Result of `sensitivities` for weights, with the same numbers of bits for every layer.
        budget_bytes: Largest size of all weights together, see `weight_bytes`.

    Returns:
        Settings of the network with an exception for each layer.

    Raises:
        ConfigError: The weights exceed the budget even with the fewest bits.
    """
    losses: dict[str, dict[int, float]] = {}
    for row in table:
        losses.setdefault(row.layer, {})[row.bits] = row.loss
    chosen = {layer: max(options) for layer, options in losses.items()}
    while weight_bytes(network, chosen) > budget_bytes:
        steps = [
            (_price(network, layer, losses[layer], chosen[layer], fewer), layer, fewer)
            for layer in chosen
            for fewer in losses[layer]
            if fewer < chosen[layer]
        ]
        if not steps:
            least = weight_bytes(network, chosen)
            raise ConfigError(
                f"budget of {budget_bytes:.0f} bytes: the weights take {least:.0f} in the fewest bits measured; "
                "raise it, or measure fewer bits"
            )
        _, layer, fewer = min(steps)
        chosen[layer] = fewer
    return replace(network.config, layers={**network.config.layers, **_exceptions(chosen)})


def _exceptions(bits: Mapping[str, int]) -> dict[str, LayerBits]:
    return {layer: LayerBits(weights=number) for layer, number in bits.items()}


def _price(network: QuantizedNetwork, layer: str, losses: Mapping[int, float], now: int, fewer: int) -> float:
    """Return the loss of the metric per byte saved."""
    saved = network.weights(layer)[0].numel() * (now - fewer) / 8
    return (losses[fewer] - losses[now]) / saved
