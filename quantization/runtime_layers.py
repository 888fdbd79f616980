"""The layers of a quantised network in the form of runtimes that compute in floating point between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from quantization.network import QuantizedNetwork
from quantization.program.program import Affine
from quantization.ranges.affine import Grid, integer_limits, weight_integers

Floats: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Integers:
    """Weights of a layer in integers, and the scales around it.

    Attributes:
        weight: Weight (O, ...), symmetric.
        scales: Scale of each output channel (O,): a real weight is its integer times that.
        source: Scale and zero point of what the layer reads.
        result: Scale and zero point of what it returns, for runtimes that round that too.
    """

    weight: NDArray[Any]
    scales: Floats
    source: Affine
    result: Affine

    @property
    def grid(self) -> Grid:
        """Scales and limits of the weight."""
        scales = torch.from_numpy(self.scales).double()
        low, high = integer_limits(8, symmetric=True)
        return Grid(scales=scales, zero_points=torch.zeros_like(scales), low=low, high=high)


@dataclass(frozen=True, kw_only=True, eq=False)
class RuntimeLayer:
    """A layer with weights, which makes up for the rounding of the layers before it.

    Attributes:
        weight: Real weight (O, ...); with integers, what they stand for.
        bias: Bias (O,).
        integers: None for a layer that stays in floating point.
    """

    weight: Floats
    bias: Floats
    integers: Integers | None = None


def runtime_layers(network: QuantizedNetwork) -> dict[str, RuntimeLayer]:
    """Return the layers of a calibrated network with weights, by their paths."""
    return {name: _layer(network, name) for name in network.graph.weighted}


def _layer(network: QuantizedNetwork, name: str) -> RuntimeLayer:
    node = network.graph.nodes[name]
    weight, bias = (tensor.detach() for tensor in network.rounded_weights(node))
    grid, source, result = network.grid(node), network.affine_of(node.inputs[0]), network.affine_of(name)
    integers = None
    if grid is not None:
        assert source is not None
        assert result is not None
        integers = Integers(
            weight=weight_integers(weight, grid).numpy().astype(np.int8),
            scales=grid.scales.numpy().astype(np.float32),
            source=source,
            result=result,
        )
    return RuntimeLayer(weight=weight.numpy().copy(), bias=bias.numpy().copy(), integers=integers)
