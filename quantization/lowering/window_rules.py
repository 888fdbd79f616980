"""Lower operators on windows: pooling, means over maps, and padding."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from quantization.lowering.building import Builder, Call, Ref
from quantization.lowering.graph import Node
from quantization.lowering.shape_rules import moved, repeated, sliced


def max_pool(build: Builder, call: Call) -> Ref:
    """Lower a maximum over windows."""
    if call.pair("dilation", 1) != (1, 1):
        raise call.refusal("is dilated")
    kernel, stride = _window(call)
    padding = call.pair("padding", 0)
    if call.get("ceil_mode", False):
        return _max_pool_over_the_end(build, call, kernel=kernel, stride=stride, padding=padding)
    return moved(build, call, "max_pool", {"kernel": kernel, "stride": stride, "padding": padding})


def _max_pool_over_the_end(
    build: Builder, call: Call, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Ref:
    """Lower max pooling whose last windows extend over the end (ceil_mode), for maps of any size.

    The last windows extend over the end by less than the stride, and start before it. Since borders are equally wide
    on both sides, the windows on wider borders are computed and the wanted ones are sliced out.
    """
    sides = zip(kernel, stride, padding, strict=True)
    over = [max(0, min(step - 1, side - 1 - border)) for side, step, border in sides]
    wider = (padding[0] + over[0], padding[1] + over[1])
    steps = (1 if over[0] else stride[0], 1 if over[1] else stride[1])
    sizes = zip(call.source.shape[2:], kernel, steps, wider, strict=True)
    counts = ((size + 2 * border - side) // step + 1 for size, side, step, border in sizes)
    every = replace(call, name=f"{call.name}.windows", shapes=((*call.source.shape[:2], *counts),))
    windows = moved(build, every, "max_pool", {"kernel": kernel, "stride": steps, "padding": wider})
    wanted = {axis: slice(over[axis - 2], None, stride[axis - 2]) for axis in (2, 3) if over[axis - 2]}
    return sliced(build, replace(call, arguments={"input": windows}), wanted)


def avg_pool(build: Builder, call: Call) -> Ref:
    """Lower a mean over windows.

    With zero padding it becomes a depthwise convolution of equal weights, which are exact in any number of bits.
    """
    if call.get("divisor_override") is not None:
        raise call.refusal("has a divisor of its own")
    kernel, stride = _window(call)
    padding = call.pair("padding", 0)
    _check_whole_windows(call, kernel, stride, padding)
    if padding == (0, 0):
        return _mean_over(build, call, kernel=kernel, stride=stride)
    if not call.get("count_include_pad", True):
        raise call.refusal("divides by fewer values at the border (count_include_pad=False)")
    return _equal_weights(build, call, kernel=kernel, stride=stride, padding=padding)


def _window(call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    kernel = call.pair("kernel_size")
    # torch passes an empty list if a function was called without a stride.
    return kernel, call.pair("stride") if call.get("stride") else kernel


def _check_whole_windows(
    call: Call, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    sizes = zip(call.source.shape[2:], kernel, stride, padding, strict=True)
    floors = tuple((size + 2 * pad - side) // step + 1 for size, side, step, pad in sizes)
    if floors != call.shape[2:]:
        raise call.refusal("has windows that extend over the border (ceil_mode)")


def adaptive_avg_pool(build: Builder, call: Call) -> Ref:
    """Lower adaptive pooling to a mean over the map or equal windows, or to repetition of a smaller map."""
    given, wanted = call.source.shape[2:], call.shape[2:]
    if given == wanted:
        return call.source
    if wanted == (1, 1):
        return _mean_over(build, call, kernel=(0, 0), stride=(1, 1))
    if all(size % side == 0 for size, side in zip(given, wanted, strict=True)):
        kernel = (given[0] // wanted[0], given[1] // wanted[1])
        return _mean_over(build, call, kernel=kernel, stride=kernel)
    return repeated(build, call)


def mean(build: Builder, call: Call) -> Ref:
    """Lower a mean over height and width."""
    source = call.source
    axes = call.get("dim")
    axes = axes if isinstance(axes, list | tuple) else (axes,)
    if len(source.shape) != 4 or any(axis is None for axis in axes) or {axis % 4 for axis in axes} != {2, 3}:
        raise call.refusal("is over other dimensions than height and width")
    if len(call.shape) == 4:
        return _mean_over(build, call, kernel=(0, 0), stride=(1, 1))
    shape = (*source.shape[:2], 1, 1)
    pooling = Call(name=f"{call.name}.map", operator=call.operator, arguments=call.arguments, shapes=(shape,))
    pooled = _mean_over(build, pooling, kernel=(0, 0), stride=(1, 1))
    node = Node(name=call.name, kind="flatten", inputs=(pooled.name,), settings={"start_axis": 1})
    return build.add(node, call.shape)


def _mean_over(build: Builder, call: Call, *, kernel: tuple[int, int], stride: tuple[int, int]) -> Ref:
    sides = call.source.shape[2:] if kernel == (0, 0) else kernel
    node = Node(
        name=call.name,
        kind="mean",
        inputs=(call.source.name,),
        settings={"kernel": kernel, "stride": stride},
        area=math.prod(sides),
    )
    return build.add(node, call.shape)


def pad(build: Builder, call: Call) -> Ref:
    """Lower zero padding: a depthwise convolution with weights of 1 pads evenly, slices cut off the excess."""
    source, given = call.source, tuple(call.get("pad"))
    given = given * 4 if len(given) == 1 else given
    if call.get("mode", "constant") != "constant" or call.get("value") or len(given) != 4 or min(given) < 0:
        raise call.refusal("is no padding of height and width with zeros")
    left, right, top, bottom = given
    padding = (max(top, bottom), max(left, right))
    sides = [size + 2 * border for size, border in zip(source.shape[2:], padding, strict=True)]
    border = replace(call, name=f"{call.name}.border", shapes=((*source.shape[:2], *sides),))
    bordered = _equal_weights(build, border, kernel=(1, 1), stride=(1, 1), padding=padding)
    # Counted from the end, so that they fit maps of other sizes.
    slices = {
        2: slice(padding[0] - top, bottom - padding[0] or None),
        3: slice(padding[1] - left, right - padding[1] or None),
    }
    return sliced(build, replace(call, arguments={"input": bordered}), slices)


def _equal_weights(
    build: Builder, call: Call, *, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> Ref:
    """Add a mean over windows of each channel, as a depthwise convolution with zero padding."""
    channels = call.source.shape[1]
    node = Node(
        name=call.name,
        kind="conv",
        inputs=(call.source.name,),
        settings={"stride": stride, "padding": padding, "dilation": (1, 1), "groups": channels},
        weight=torch.full((channels, 1, *kernel), 1 / math.prod(kernel)),
        bias=torch.zeros(channels),
    )
    return build.add(node, call.shape)
