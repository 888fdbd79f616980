"""Convolutions and linear layers on integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.execution.matrix import ConstantMatrix, digits
from quantization.execution.stored import is_narrow, offset_of, rescaled_
from quantization.program.program import Affine, Operation

# Computes an operation's result from its inputs, all in the format of `stored`.
Step: TypeAlias = Callable[[Sequence[Tensor]], Tensor]

# Subtracted from integers that start at zero, so that two digits cover 16 bits around zero.
_CENTRE = 32896


def linear_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step of a linear layer, from (K, B) to (O, B)."""
    source = inputs[0]
    matrix = ConstantMatrix(_centred_weight(operation))
    finish = _Finish(operation, matrix.row_sums * _shift_of(source))
    return lambda values: finish(matrix.times(_digits_of(values[0], source)))


def conv_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step of a convolution, from (C, B, H, W) to (O, B, H', W')."""
    weight = _centred_weight(operation)
    groups = operation.settings["groups"]
    if groups != 1 and weight.shape[1] == 1:
        return _depthwise_step(operation, inputs[0], weight)
    return _grouped_step(operation, inputs[0], weight)


def _grouped_step(operation: Operation, source: Affine, weight: Tensor) -> Step:
    groups = int(str(operation.settings["groups"]))
    matrices = [ConstantMatrix(part.flatten(1)) for part in weight.chunk(groups)]
    row_sums = torch.cat([matrix.row_sums for matrix in matrices])
    finish = _Finish(operation, row_sums * _shift_of(source))
    window = _Window.of(operation, tuple(weight.shape[2:]))

    def step(values: Sequence[Tensor]) -> Tensor:
        padded = window.padded(values[0], source.zero_point - offset_of(source))
        parts = [digit.chunk(groups) for digit in _digits_of(padded, source)]
        height, width = window.result_hw(padded)
        columns = ([window.columns(digit[group]) for digit in parts] for group in range(groups))
        products = [matrix.times(column) for matrix, column in zip(matrices, columns, strict=True)]
        total = products[0] if groups == 1 else torch.cat(products)  # (O, B * H' * W')
        return finish(total).view(-1, padded.shape[1], height, width)

    return step


def _depthwise_step(operation: Operation, source: Affine, weight: Tensor) -> Step:
    """Build the step of a depthwise convolution, with one multiplication per tap of the kernel."""
    repeats = len(weight) // int(str(operation.settings["groups"]))
    window = _Window.of(operation, tuple(weight.shape[2:]))
    sums = weight.abs().flatten(1).sum(1)
    finish = _Finish(operation, weight.flatten(1).sum(1) * (offset_of(source) - source.zero_point))
    largest = int(sums.max()) * (source.high - source.low + 1)
    dtype = torch.int32 if largest < 2**31 else torch.int64
    taps = weight.flatten(1).t().to(dtype)[:, :, None, None, None]  # (KH * KW, O, 1, 1, 1)

    def step(values: Sequence[Tensor]) -> Tensor:
        padded = window.padded(values[0], source.zero_point - offset_of(source)).to(dtype)
        if repeats > 1:
            padded = padded.repeat_interleave(repeats, 0)
        windows = window.views(padded)  # (O, KH, KW, B, H', W')
        views = [column for row in windows.unbind(1) for column in row.unbind(1)]
        total = views[0] * taps[0]
        for view, tap in zip(views[1:], taps[1:], strict=True):
            total.addcmul_(view, tap)
        return finish(total.flatten(1)).view(total.shape)

    return step


class _Finish:
    """Turns sums of products into results: corrects offsets, adds the bias, and rescales.

    Args:
        operation: Convolution or linear layer.
        correction: Amount (O,), int64, missing from the sums because the stored offset is not the zero point.
    """

    def __init__(self, operation: Operation, correction: Tensor) -> None:
        self._output = operation.output
        arrays = {name: torch.from_numpy(operation.arrays[name]) for name in ("multiplier", "shift", "bias")}
        multiplier, self._shift = arrays["multiplier"][:, None], arrays["shift"][:, None]
        self._multiplier = multiplier
        # Intermediate sums may overflow: 64-bit integers wrap around, and the final sum fits.
        self._addend = (arrays["bias"] + correction)[:, None] * multiplier + (1 << (self._shift - 1))

    def __call__(self, total: Tensor) -> Tensor:
        """Return the results (O, N) of the sums (O, N)."""
        return rescaled_(total.to(torch.int64), self._multiplier, self._addend, self._shift, self._output)


class _Window:
    """The windows of a convolution: kernel, stride, padding and dilation."""

    def __init__(self, kernel: tuple[int, ...], settings: dict[str, tuple[int, int]]) -> None:
        self._kernel = kernel
        self._stride, self._dilation = settings["stride"], settings["dilation"]
        self._padding = settings["padding"]

    @classmethod
    def of(cls, operation: Operation, kernel: tuple[int, ...]) -> _Window:
        """Read the windows of a convolution with this kernel (KH, KW)."""
        pairs = {}
        for name in ("stride", "padding", "dilation"):
            value = operation.settings[name]
            assert isinstance(value, tuple)
            pairs[name] = (value[0], value[1])
        return cls(kernel, pairs)

    def padded(self, values: Tensor, border: int) -> Tensor:
        """Pad (C, B, H, W) with `border`, the integer of zero."""
        rows, columns = self._padding
        return F.pad(values, (columns, columns, rows, rows), value=border) if rows or columns else values

    def result_hw(self, padded: Tensor) -> tuple[int, int]:
        """Return the height and width of the result."""
        sizes = zip(padded.shape[2:], self._kernel, self._stride, self._dilation, strict=True)
        height, width = ((size - step * (side - 1) - 1) // stride + 1 for size, side, stride, step in sizes)
        return height, width

    def views(self, padded: Tensor) -> Tensor:
        """Return the windows (C, KH, KW, B, H', W') as a view."""
        by_channel, by_image, by_row, by_column = padded.stride()
        height, width = self.result_hw(padded)
        return padded.as_strided(
            (padded.shape[0], *self._kernel, padded.shape[1], height, width),
            (
                by_channel,
                by_row * self._dilation[0],
                by_column * self._dilation[1],
                by_image,
                by_row * self._stride[0],
                by_column * self._stride[1],
            ),
            padded.storage_offset(),
        )

    def columns(self, padded: Tensor) -> Tensor:
        """Return the windows as columns (C * KH * KW, B * H' * W')."""
        views = self.views(padded)
        rows = views.shape[0] * views.shape[1] * views.shape[2]
        return views.reshape(rows, -1)


def _centred_weight(operation: Operation) -> Tensor:
    weight = torch.from_numpy(operation.arrays["weight"])
    zero_points = torch.from_numpy(operation.arrays["weight_zero_point"])
    return weight - zero_points.view(-1, *(1 for _ in weight.shape[1:]))


def _digits_of(values: Tensor, source: Affine) -> list[Tensor]:
    return [values] if is_narrow(source) else digits(values - _CENTRE, 2)


def _shift_of(source: Affine) -> int:
    """Return by how much integers minus their zero point exceed the value of their digits."""
    return offset_of(source) - source.zero_point + (0 if is_narrow(source) else _CENTRE)
