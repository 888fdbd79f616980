"""Compute the operations of a graph in floating point."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.lowering.graph import Node, NodeKind


def pair_of(node: Node, name: str) -> tuple[int, int]:
    """Return a setting of two integers."""
    value = node.settings[name]
    assert isinstance(value, tuple)
    return value[0], value[1]


def number_of(node: Node, name: str) -> int:
    """Return a setting of one integer."""
    value = node.settings[name]
    assert isinstance(value, int)
    return value


def computed(node: Node, inputs: Sequence[Tensor], weights: tuple[Tensor, Tensor] | None) -> Tensor:
    """Compute the result of a node, clamped but not rounded.

    Args:
        node: Node to compute.
        inputs: Results of the nodes it reads; for the input node, the images.
        weights: Weight and bias; None for a node without weights.
    """
    if weights is not None:
        return clamped(node, sums(node, inputs[0], weights))
    return inputs[0] if node.kind == "input" else clamped(node, _OPERATIONS[node.kind](node, inputs))


def sums(node: Node, x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    """Compute the result of a node with weights before clamping."""
    weight, bias = weights
    return F.linear(x, weight, bias) if node.kind == "linear" else _conv(node, x, weight, bias)


def clamped(node: Node, result: Tensor) -> Tensor:
    """Clamp a result to the limits of its node."""
    low, high = node.clamp
    return result if (low, high) == (-math.inf, math.inf) else result.clamp(low, high)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    stride, padding, dilation = (pair_of(node, name) for name in ("stride", "padding", "dilation"))
    return F.conv2d(x, weight, bias, stride, padding, dilation, number_of(node, "groups"))


def _function(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    assert node.function is not None
    return node.function(*inputs)


def _max_pool(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    kernel, stride, padding = (pair_of(node, name) for name in ("kernel", "stride", "padding"))
    # torch's pooling does not accept a border wider than half a window.
    bordered = F.pad(inputs[0], (padding[1], padding[1], padding[0], padding[0]), value=-math.inf)
    return F.max_pool2d(bordered, kernel, stride)


def _mean(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    kernel = pair_of(node, "kernel")
    if kernel == (0, 0):
        return inputs[0].mean((2, 3), keepdim=True)
    return F.avg_pool2d(inputs[0], kernel, pair_of(node, "stride"))


def _upsample(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    rows, columns = pair_of(node, "scale")
    return inputs[0].repeat_interleave(rows, 2).repeat_interleave(columns, 3)


def _slice(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    start, stop, step = (number_of(node, name) for name in ("start", "stop", "step"))
    everything = [slice(None)] * number_of(node, "axis")
    return inputs[0][(*everything, slice(start, stop, step))]


def _reshape(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    shape = node.settings["shape"]
    assert isinstance(shape, tuple)
    return inputs[0].reshape(len(inputs[0]), *shape)


def _permute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    axes = node.settings["axes"]
    assert isinstance(axes, tuple)
    return inputs[0].permute(axes)


_OPERATIONS: dict[NodeKind, Callable[[Node, Sequence[Tensor]], Tensor]] = {
    "lookup": _function,
    "opaque": _function,
    "add": lambda node, inputs: inputs[0] + inputs[1],
    "concat": lambda node, inputs: torch.cat(list(inputs), number_of(node, "axis")),
    "multiply": lambda node, inputs: inputs[0] * inputs[1],
    "max_pool": _max_pool,
    "mean": _mean,
    "rescale": lambda node, inputs: inputs[0],
    "upsample": _upsample,
    "slice": _slice,
    "flatten": lambda node, inputs: inputs[0].flatten(number_of(node, "start_axis")),
    "reshape": _reshape,
    "permute": _permute,
}
