"""Plan the number of bits of each weight and each value of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from quantization.lowering.graph import INPUT, Graph
from quantization.program.program import MOST_BITS
from quantization.ranges.config import LayerBits, QuantConfig
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """Number of bits by name of the node; None means not quantised.

    Attributes:
        weights: Bits of the weights of every node that has some.
        values: Bits of the results of every node that has its own scale.
    """

    weights: Mapping[str, int | None]
    values: Mapping[str, int | None]


def planned_bits(graph: Graph, config: QuantConfig) -> BitPlan:
    """Apply the settings, with their exceptions for single layers, to a graph; all uses of a layer get the same bits.

    Raises:
        ConfigError: A pattern of `config.layers` matches no layer, or sets only weights and matches no layer with
            weights.
    """
    for pattern, bits in config.layers.items():
        fitting = [name for name in graph.scaled if fnmatchcase(name, pattern)]
        if not fitting:
            raise ConfigError(f"layers: {pattern!r} matches none; known: {', '.join(graph.scaled)}")
        if bits.activations is None and not set(fitting) & set(graph.weighted):
            raise ConfigError(f"layers: {pattern!r} matches none with weights; known: {', '.join(graph.weighted)}")
    wide = graph.wide() if config.rounded == "values" else frozenset()
    heads = graph.heads()
    read_by_heads = {graph.scale_of(graph.nodes[name].inputs[0]) for name in heads}
    weights, values = {}, {}
    for name in graph.scaled:
        given = _exception(config, name)
        usual = config.input_bits if name == INPUT else config.activation_bits
        usual = max(usual, config.head_bits) if name in read_by_heads else usual
        extra = config.table_bits if name in wide else 0
        values[name] = min((given.activations or usual) + extra, MOST_BITS)
        if name in graph.weighted:
            uses = [node.name for node in graph.uses(name)]
            least = config.head_bits if heads & set(uses) else 0
            wanted = [found.weights for use in uses if (found := _exception(config, use)).weights]
            weights[name] = max(wanted, default=max(config.weight_bits, least))
    return BitPlan(weights=weights, values=values)


def _exception(config: QuantConfig, name: str) -> LayerBits:
    """Return the bits that settings give to one layer in particular."""
    found = LayerBits()
    for pattern, bits in config.layers.items():
        if fnmatchcase(name, pattern):
            found = LayerBits(
                weights=bits.weights or found.weights, activations=bits.activations or found.activations
            )
    return found
