"""Convert a calibrated graph to the integer operations of an `IntegerProgram`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quantization.lowering.graph import Graph, Node
from quantization.program.program import Affine, FloatArray, IntArray, Operation
from quantization.ranges.affine import Grid, common_fixed_point, fixed_point, quantise
from utils.errors import QuantizationError

_INT32 = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """Weights of a node and their quantisation.

    Attributes:
        integers: Weights (O, ...); the same array for all uses of a layer.
        bias: Real biases (O,).
        grid: Scales and zero points of the weight; scales are negative where a channel has a negative gain.
        bits: Number of bits of the weight.
    """

    integers: IntArray
    bias: Tensor
    grid: Grid
    bits: int


@torch.no_grad()
def operations_of(
    graph: Graph, *, affines: Mapping[str, Affine], layers: Mapping[str, Layer], dtype: torch.dtype
) -> tuple[Operation, ...]:
    """Convert every node to an operation on integers.

    Args:
        graph: Network to convert.
        affines: Scale and zero point of each node that has its own, by name.
        layers: Weights of each node that has some, by name.
        dtype: Type in which lookup tables are computed.

    Raises:
        QuantizationError: A function returns NaN for an input within its range.
    """
    operations = []
    for node in graph.nodes.values():
        assert node.kind != "opaque", f"{node.name} has no integer form"
        output = affines[graph.scale_of(node.name)]
        inputs = tuple(affines[graph.scale_of(name)] for name in node.inputs)
        arrays: dict[str, IntArray] = {}
        weight_scales: FloatArray = np.empty(0)
        layer = layers.get(node.name)
        if layer is not None:
            arrays = _layer_arrays(layer, inputs[0], output)
            weight_scales = layer.grid.scales.detach().cpu().numpy().copy()
        elif node.kind == "lookup":
            arrays = {"table": _table(node, inputs[0], output, dtype)}
        elif node.kind in _FACTORS:
            arrays = _FACTORS[node.kind](node, inputs, output)
        operations.append(
            Operation(
                name=node.name,
                kind=node.kind,
                inputs=node.inputs,
                output=output,
                settings=dict(node.settings),
                arrays=arrays,
                weight_scales=weight_scales,
                weight_bits=layer.bits if layer else 0,
            )
        )
    return tuple(operations)


def reach(affine: Affine) -> int:
    """Return the largest magnitude of an integer minus the zero point."""
    return max(affine.high - affine.zero_point, affine.zero_point - affine.low)


def _layer_arrays(layer: Layer, source: Affine, output: Affine) -> dict[str, IntArray]:
    integers = torch.from_numpy(layer.integers)
    zero_points = layer.grid.zero_points.long().cpu()
    scales = layer.grid.scales.detach().cpu()
    biases = torch.floor(layer.bias.detach().double().cpu() / (scales * source.scale) + 0.5)
    bias = biases.clamp(-_INT32, _INT32).long()
    centred = integers - zero_points.view(-1, *(1 for _ in integers.shape[1:]))
    bounds = centred.abs().flatten(1).sum(1) * reach(source) + bias.abs()
    factors = [
        fixed_point(source.scale * abs(scale) / output.scale, bound=bound)
        for scale, bound in zip(scales.tolist(), bounds.tolist(), strict=True)
    ]
    signs = np.where(scales.numpy() < 0, -1, 1)
    return {
        "weight": layer.integers,
        "weight_zero_point": zero_points.numpy().copy(),
        "bias": bias.numpy(),
        "multiplier": np.array([multiplier for multiplier, _ in factors], dtype=np.int64) * signs,
        "shift": np.array([shift for _, shift in factors], dtype=np.int64),
    }


def _table(node: Node, source: Affine, output: Affine, dtype: torch.dtype) -> IntArray:
    assert node.function is not None
    integers = torch.arange(source.low, source.high + 1)
    values = node.function((integers - source.zero_point).to(dtype) * source.scale).clamp(*node.clamp)
    if values.isnan().any():
        raise QuantizationError(
            f"{node.name}: its function returns NaN for an input between "
            f"{(source.low - source.zero_point) * source.scale:.3g} and "
            f"{(source.high - source.zero_point) * source.scale:.3g}; use a function that is defined there"
        )
    table: IntArray = quantise(values, output).numpy()
    return table


Inputs = tuple[Affine, ...]


def _add_factors(node: Node, inputs: Inputs, output: Affine) -> dict[str, IntArray]:
    reals = [source.scale / output.scale for source in inputs]
    factors, shift = common_fixed_point(reals, bounds=[reach(source) for source in inputs])
    return {"factor": np.array(factors, dtype=np.int64), "shift": np.array([shift], dtype=np.int64)}


def _concat_factors(node: Node, inputs: Inputs, output: Affine) -> dict[str, IntArray]:
    return _multipliers([(source.scale / output.scale, reach(source)) for source in inputs])


def _multiply_factors(node: Node, inputs: Inputs, output: Affine) -> dict[str, IntArray]:
    one, other = inputs
    return _multipliers([(one.scale * other.scale / output.scale, reach(one) * reach(other))])


def _mean_factors(node: Node, inputs: Inputs, output: Affine) -> dict[str, IntArray]:
    return _multipliers([(inputs[0].scale / (output.scale * node.area), reach(inputs[0]) * node.area)])


def _multipliers(wanted: list[tuple[float, int]]) -> dict[str, IntArray]:
    """Convert pairs of a real factor and the bound of its operand to integer multipliers and shifts."""
    pairs = [fixed_point(real, bound=bound) for real, bound in wanted]
    return {
        "multiplier": np.array([multiplier for multiplier, _ in pairs], dtype=np.int64),
        "shift": np.array([shift for _, shift in pairs], dtype=np.int64),
    }


_FACTORS: dict[str, Callable[[Node, Inputs, Affine], dict[str, IntArray]]] = {
    "add": _add_factors,
    "concat": _concat_factors,
    "multiply": _multiply_factors,
    "mean": _mean_factors,
    "rescale": _concat_factors,
}
