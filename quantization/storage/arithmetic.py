"""Compute the operations of a program in numpy, on 64-bit integers only, as program.py defines them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from quantization.program.program import Affine, IntArray, Operation
from quantization.program.shapes import number, numbers_taken, pair


def rescale(numbers: IntArray, multiplier: IntArray, shift: IntArray) -> IntArray:
    """Compute (a * M + 2^(k-1)) >> k, with k from 1."""
    half = np.int64(1) << (shift - 1)
    scaled: IntArray = (numbers * multiplier + half) >> shift
    return scaled


def clamp(numbers: IntArray, affine: Affine) -> IntArray:
    """Add the zero point and clamp to the range."""
    return np.clip(numbers + affine.zero_point, affine.low, affine.high)


def run_operation(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    """Compute the result of one operation.

    Args:
        operation: Operation of any kind but input.
        values: Results of its inputs, the batch first.
        affines: Scale, zero point and limits of each input.
    """
    return _KINDS[operation.kind](operation, values, affines)


def _conv(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    groups = number(operation, "groups")
    weight = _centred_weight(operation)
    kernel = (weight.shape[2], weight.shape[3])
    padded = _padded(values[0] - affines[0].zero_point, pair(operation, "padding"), 0)
    windows = _windows(padded, kernel, pair(operation, "stride"), pair(operation, "dilation"))
    batch, _, rows, columns = windows.shape[:4]
    # Both have the summed axis last, to read memory in order, since numpy has no fast product of integers.
    grouped = windows.reshape(batch, groups, -1, rows * columns, kernel[0] * kernel[1])  # (B, G, C/G, P, K)
    patches = grouped.transpose(0, 1, 3, 2, 4).reshape(batch, groups, rows * columns, -1)  # (B, G, P, C/G * K)
    rows_of_weight = weight.reshape(groups, len(weight) // groups, -1)  # (G, O/G, C/G * K)
    sums = patches @ rows_of_weight.swapaxes(1, 2)  # (B, G, P, O/G)
    maps = sums.swapaxes(2, 3).reshape(batch, len(weight), rows, columns)
    return _requantised(operation, maps, axes=3)


def _linear(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    sums = (values[0] - affines[0].zero_point) @ _centred_weight(operation).T
    return _requantised(operation, sums, axes=1)


def _centred_weight(operation: Operation) -> IntArray:
    weight = operation.arrays["weight"]
    return weight - operation.arrays["weight_zero_point"].reshape(-1, *(1 for _ in weight.shape[1:]))


def _requantised(operation: Operation, sums: IntArray, *, axes: int) -> IntArray:
    """Convert sums of products to integers of the output; channels are `axes` axes from the end."""
    arrays = {name: operation.arrays[name].reshape(-1, *[1] * (axes - 1)) for name in ("bias", "multiplier", "shift")}
    return clamp(rescale(sums + arrays["bias"], arrays["multiplier"], arrays["shift"]), operation.output)


def _lookup(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    return operation.arrays["table"][values[0] - affines[0].low]


def _add(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    terms = (
        (value - affine.zero_point) * factor
        for value, affine, factor in zip(values, affines, operation.arrays["factor"], strict=True)
    )
    return clamp(rescale(reduce(np.add, terms), np.ones(1, np.int64), operation.arrays["shift"]), operation.output)


def _concat(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    arrays = operation.arrays
    scaled = [
        clamp(rescale(value - affine.zero_point, multiplier, shift), operation.output)
        for value, affine, multiplier, shift in zip(
            values, affines, arrays["multiplier"], arrays["shift"], strict=True
        )
    ]
    return np.concatenate(scaled, axis=number(operation, "axis"))


def _multiply(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    first, second = (value - affine.zero_point for value, affine in zip(values, affines, strict=True))
    return _rescaled(operation, first * second)


def _mean(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    centred = values[0] - affines[0].zero_point
    kernel = pair(operation, "kernel")
    if kernel == (0, 0):
        return _rescaled(operation, centred.sum((2, 3), keepdims=True))
    windows = _windows(centred, kernel, pair(operation, "stride"), (1, 1))
    return _rescaled(operation, windows.sum((4, 5)))


def _rescale(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    return _rescaled(operation, values[0] - affines[0].zero_point)


def _rescaled(operation: Operation, numbers: IntArray) -> IntArray:
    arrays = operation.arrays
    return clamp(rescale(numbers, arrays["multiplier"], arrays["shift"]), operation.output)


def _max_pool(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    padded = _padded(values[0], pair(operation, "padding"), affines[0].low)
    largest: IntArray = _windows(padded, pair(operation, "kernel"), pair(operation, "stride"), (1, 1)).max((4, 5))
    return largest


def _upsample(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    rows, columns = pair(operation, "scale")
    return values[0].repeat(rows, 2).repeat(columns, 3)


def _slice(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    before = [slice(None)] * number(operation, "axis")
    return values[0][(*before, numbers_taken(operation))]


def _flatten(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    return values[0].reshape(*values[0].shape[: number(operation, "start_axis")], -1)


def _reshape(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    shape = operation.settings["shape"]
    assert isinstance(shape, tuple)
    return values[0].reshape(len(values[0]), *shape)


def _permute(operation: Operation, values: Sequence[IntArray], affines: Sequence[Affine]) -> IntArray:
    return values[0].transpose(operation.settings["axes"])


def _padded(maps: IntArray, padding: tuple[int, int], value: int) -> IntArray:
    rows, columns = padding
    return np.pad(maps, ((0, 0), (0, 0), (rows, rows), (columns, columns)), constant_values=value)


def _windows(
    maps: IntArray, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> NDArray[np.int64]:
    """Return windows (B, C, rows, columns, KH, KW) of padded maps (B, C, H, W) as a view."""
    spans = tuple(step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True))
    every = sliding_window_view(maps, spans, axis=(2, 3))
    return every[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


_KINDS: Mapping[str, Callable[[Operation, Sequence[IntArray], Sequence[Affine]], IntArray]] = {
    "conv": _conv,
    "linear": _linear,
    "lookup": _lookup,
    "add": _add,
    "concat": _concat,
    "multiply": _multiply,
    "max_pool": _max_pool,
    "mean": _mean,
    "rescale": _rescale,
    "upsample": _upsample,
    "slice": _slice,
    "flatten": _flatten,
    "reshape": _reshape,
    "permute": _permute,
}
