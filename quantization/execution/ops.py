"""Steps of all operations without weights on integers: one function per kind builds the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.execution.layers import Step, conv_step, linear_step
from quantization.execution.stored import dtype_of, offset_of, rescaled_
from quantization.program.program import Affine, Operation


def lookup_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that looks up each value in a table."""
    output, source = operation.output, inputs[0]
    table = (torch.from_numpy(operation.arrays["table"]) - offset_of(output)).to(dtype_of(output))
    start = offset_of(source) - source.low

    def step(values: Sequence[Tensor]) -> Tensor:
        positions = values[0].to(torch.int32)
        if start:
            positions += start
        return table.index_select(0, positions.reshape(-1)).view(positions.shape)

    return step


def add_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that sums the inputs, each times its factor."""
    factors = operation.arrays["factor"].tolist()
    shift = int(operation.arrays["shift"][0])
    offsets = [offset_of(source) - source.zero_point for source in inputs]
    addend = sum(offset * factor for offset, factor in zip(offsets, factors, strict=True)) + (1 << (shift - 1))

    def step(values: Sequence[Tensor]) -> Tensor:
        total = values[0].to(torch.int64).mul_(factors[0])
        for value, factor in zip(values[1:], factors[1:], strict=True):
            total.add_(value.to(torch.int64), alpha=factor)
        return rescaled_(total, 1, addend, shift, operation.output)

    return step


def concat_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that brings inputs to one scale and concatenates them."""
    axis = _number(operation, "axis")
    steps = [_rescaling(operation, source, index) for index, source in enumerate(inputs)]
    return lambda values: torch.cat([step(value) for step, value in zip(steps, values, strict=True)], _held(axis))


def rescale_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that converts values to another scale."""
    step = _rescaling(operation, inputs[0], 0)
    return lambda values: step(values[0])


def _rescaling(operation: Operation, source: Affine, index: int) -> Callable[[Tensor], Tensor]:
    """Build the rescaling of one input of a concatenation or rescale operation."""
    multiplier, shift = (int(operation.arrays[name][index]) for name in ("multiplier", "shift"))
    if multiplier == 1 << shift and source == operation.output:
        return lambda value: value
    addend = (offset_of(source) - source.zero_point) * multiplier + (1 << (shift - 1))
    return lambda value: rescaled_(value.to(torch.int64), multiplier, addend, shift, operation.output)


def multiply_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that multiplies two inputs elementwise."""
    multiplier, shift = (int(operation.arrays[name][0]) for name in ("multiplier", "shift"))
    offsets = [offset_of(source) - source.zero_point for source in inputs]

    def step(values: Sequence[Tensor]) -> Tensor:
        one, other = (value.to(torch.int64).add_(offset) for value, offset in zip(values, offsets, strict=True))
        return rescaled_(one * other, multiplier, 1 << (shift - 1), shift, operation.output)

    return step


def mean_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that averages over windows, or over the whole map; the factor includes 1 / area."""
    multiplier, shift = (int(operation.arrays[name][0]) for name in ("multiplier", "shift"))
    kernel, stride = _pair(operation, "kernel"), _pair(operation, "stride")
    offset = offset_of(inputs[0]) - inputs[0].zero_point

    def step(values: Sequence[Tensor]) -> Tensor:
        x = values[0]
        sides = kernel if kernel != (0, 0) else (x.shape[2], x.shape[3])
        windows = x.unfold(2, sides[0], stride[0]).unfold(3, sides[1], stride[1])  # (C, B, H', W', KH, KW)
        total = windows.sum((4, 5), dtype=torch.int64)
        addend = offset * sides[0] * sides[1] * multiplier + (1 << (shift - 1))
        return rescaled_(total, multiplier, addend, shift, operation.output)

    return step


def max_pool_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that takes maxima along rows, then along columns; torch's pooling is 100 times slower."""
    kernel, stride, padding = (_pair(operation, name) for name in ("kernel", "stride", "padding"))
    lowest = inputs[0].low - offset_of(inputs[0])

    def step(values: Sequence[Tensor]) -> Tensor:
        x = values[0]
        if any(padding):
            x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=lowest)
        return _running_max(_running_max(x, 3, kernel[1], stride[1]), 2, kernel[0], stride[0])

    return step


def _running_max(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """Return the maximum over windows along one dimension."""
    span = (x.shape[axis] - kernel) // stride * stride + 1
    everything = (slice(None),) * axis
    result = x[(*everything, slice(0, span, stride))]
    for start in range(1, kernel):
        result = torch.maximum(result, x[(*everything, slice(start, start + span, stride))])
    return result


def upsample_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that repeats every value along height and width."""
    rows, columns = _pair(operation, "scale")

    def step(values: Sequence[Tensor]) -> Tensor:
        channels, images, height, width = values[0].shape
        repeated = values[0][:, :, :, None, :, None].expand(-1, -1, -1, rows, -1, columns)
        return repeated.reshape(channels, images, height * rows, width * columns)

    return step


def slice_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that slices one dimension."""
    axis = _held(_number(operation, "axis"))
    part = slice(*(_number(operation, name) for name in ("start", "stop", "step")))
    return lambda values: values[0][(*(slice(None),) * axis, part)]


def flatten_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that flattens all dimensions from `start_axis` on."""
    start = _number(operation, "start_axis")
    return lambda values: values[0].transpose(0, 1).flatten(start).transpose(0, 1)


def reshape_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that reshapes the dimensions after the batch."""
    shape = operation.settings["shape"]
    assert isinstance(shape, tuple)

    def step(values: Sequence[Tensor]) -> Tensor:
        by_image = values[0].transpose(0, 1)
        return by_image.reshape(len(by_image), *shape).transpose(0, 1)

    return step


def permute_step(operation: Operation, inputs: Sequence[Affine]) -> Step:
    """Build the step that permutes dimensions."""
    axes = operation.settings["axes"]
    assert isinstance(axes, tuple)
    return lambda values: values[0].transpose(0, 1).permute(axes).transpose(0, 1)


def _held(axis: int) -> int:
    """Return the position of a program's dimension in stored tensors, where channels precede the batch."""
    return {0: 1, 1: 0}.get(axis, axis)


def _number(operation: Operation, name: str) -> int:
    value = operation.settings[name]
    assert isinstance(value, int)
    return value


def _pair(operation: Operation, name: str) -> tuple[int, int]:
    value = operation.settings[name]
    assert isinstance(value, tuple)
    return value[0], value[1]


MAKERS: dict[str, Callable[[Operation, Sequence[Affine]], Step]] = {
    "conv": conv_step,
    "linear": linear_step,
    "lookup": lookup_step,
    "add": add_step,
    "concat": concat_step,
    "multiply": multiply_step,
    "max_pool": max_pool_step,
    "mean": mean_step,
    "rescale": rescale_step,
    "upsample": upsample_step,
    "slice": slice_step,
    "flatten": flatten_step,
    "reshape": reshape_step,
    "permute": permute_step,
}
