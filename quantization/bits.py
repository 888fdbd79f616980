"""How many bits each weight and each value of a network has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quantization.config import LayerBits, QuantConfig
from quantization.graph import INPUT, Graph
from quantization.program import MOST_BITS
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """Bits by name of the node; None stays a real number.

    Attributes:
        weights: Of the weights of every node that has some.
        values: Of the results of every node with a scale of its own.
    """

    weights: Mapping[str, int | None]
    values: Mapping[str, int | None]


def planned_bits(graph: Graph, config: QuantConfig) -> BitPlan:
    """The bits that settings give.

    Raises:
        ConfigError: A pattern of `config.layers` fits no layer, or none with weights where it is for weights alone.
    """
    for pattern, bits in config.layers.items():
        fitting = [name for name in graph.scaled if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(f"layers: {pattern!r} fits none; known: {', '.join(graph.scaled)}")
        if bits.activations is None and not set(fitting) & set(graph.weighted):
            raise ConfigError(f"layers: {pattern!r} fits none with weights; known: {', '.join(graph.weighted)}")
    wide = graph.wide()
    weights, values = {}, {}
    for name in graph.scaled:
        given = _exception(config, name)
        usual = config.input_bits if name == INPUT else config.activation_bits
        extra = config.table_bits if name in wide else 0
        values[name] = min((given.activations or usual) + extra, MOST_BITS)
        if name in graph.weighted:
            weights[name] = given.weights or config.weight_bits
    return BitPlan(weights=weights, values=values)


def _exception(config: QuantConfig, name: str) -> LayerBits:
    """What settings say of one layer alone."""
    found = LayerBits()
    for pattern, bits in config.layers.items():
        if fnmatchcase(name, pattern):
            found = LayerBits(
                weights=bits.weights or found.weights, activations=bits.activations or found.activations
            )
    return found
