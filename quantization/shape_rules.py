"""Lowering of pooling, joins, slices and whatever else moves numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from quantization.building import Builder, Call, Ref
from quantization.graph import Node
from quantization.program import Kind, Setting


def identity(build: Builder, call: Call) -> Ref:
    """Nothing at inference."""
    return call.source


def max_pool(build: Builder, call: Call) -> Ref:
    """Maximum over windows."""
    if call.pair("dilation", 1) != (1, 1):
        raise call.refusal("is dilated")
    kernel, stride = _window(call)
    padding = call.pair("padding", 0)
    _check_whole_windows(call, kernel, stride, padding)
    return _moved(build, call, "max_pool", {"kernel": kernel, "stride": stride, "padding": padding})


def avg_pool(build: Builder, call: Call) -> Ref:
    """Mean over windows."""
    if call.pair("padding", 0) != (0, 0):
        raise call.refusal("has padding")
    if call.get("divisor_override") is not None:
        raise call.refusal("has a divisor of its own")
    kernel, stride = _window(call)
    _check_whole_windows(call, kernel, stride, (0, 0))
    return _mean_over(build, call, kernel=kernel, stride=stride)


def _window(call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    kernel = call.pair("kernel_size")
    # torch gives an empty list where a function was called without a stride.
    return kernel, call.pair("stride") if call.get("stride") else kernel


def _check_whole_windows(
    call: Call, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    sizes = zip(call.source.shape[2:], kernel, stride, padding, strict=True)
    floors = tuple((size + 2 * pad - side) // step + 1 for size, side, step, pad in sizes)
    if floors != call.shape[2:]:
        raise call.refusal("has windows that reach over the border (ceil_mode)")


def adaptive_avg_pool(build: Builder, call: Call) -> Ref:
    """Mean of the whole map, of equal windows, or, from a smaller map, each number several times."""
    given, wanted = call.source.shape[2:], call.shape[2:]
    if given == wanted:
        return call.source
    if wanted == (1, 1):
        return _mean_over(build, call, kernel=(0, 0), stride=(1, 1))
    if all(size % side == 0 for size, side in zip(given, wanted, strict=True)):
        kernel = (given[0] // wanted[0], given[1] // wanted[1])
        return _mean_over(build, call, kernel=kernel, stride=kernel)
    return _repeated(build, call)


def mean(build: Builder, call: Call) -> Ref:
    """Mean over height and width."""
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


def upsample(build: Builder, call: Call) -> Ref:
    """Every number several times."""
    if call.get("mode", "nearest") not in ("nearest", "nearest-exact"):
        raise call.refusal(f"interpolates ({call.get('mode')})")
    return _repeated(build, call)


def _repeated(build: Builder, call: Call) -> Ref:
    given, wanted = call.source.shape[2:], call.shape[2:]
    if any(side % size for size, side in zip(given, wanted, strict=True)):
        raise call.refusal(f"makes {given[0]}x{given[1]} into {wanted[0]}x{wanted[1]}, no whole multiple")
    return _moved(build, call, "upsample", {"scale": (wanted[0] // given[0], wanted[1] // given[1])})


def concat(build: Builder, call: Call) -> Ref:
    """Tensors side by side."""
    tensors = call.get("input")
    if not isinstance(tensors, Sequence) or not all(isinstance(item, Ref) for item in tensors):
        raise call.refusal("joins a constant")
    axis = int(call.get("dim", 0)) % len(call.shape)
    if axis == 0:
        raise call.refusal("joins along the batch")
    if len(tensors) == 1:
        return Ref(name=tensors[0].name, shape=call.shape)
    names = tuple(item.name for item in tensors)
    return build.add(Node(name=call.name, kind="concat", inputs=names, settings={"axis": axis}), call.shape)


def reshape(build: Builder, call: Call) -> Ref:
    """The same shape, or (B, all the rest)."""
    given, wanted = call.source.shape, call.shape
    if given == wanted:
        return call.source
    if wanted != (given[0], math.prod(given[1:])):
        raise call.refusal(f"reshapes {given} to {wanted}")
    return _moved(build, call, "flatten", {"start_axis": 1})


def permute(build: Builder, call: Call) -> Ref:
    """Dimensions in another order."""
    order = call.get("dims")
    axes = tuple(axis % len(call.shape) for axis in order) if isinstance(order, list | tuple) else ()
    if sorted(axes) != list(range(len(call.shape))) or axes[0] != 0:
        raise call.refusal(f"with order {order!r} moves the batch or is no order of dimensions")
    return _moved(build, call, "permute", {"axes": axes})


def transpose(build: Builder, call: Call) -> Ref:
    """Two dimensions exchanged."""
    axes = list(range(len(call.shape)))
    one, other = (int(call.get(name)) % len(axes) for name in ("dim0", "dim1"))
    axes[one], axes[other] = axes[other], axes[one]
    arguments = {**call.arguments, "dims": axes}
    return permute(build, Call(name=call.name, operator=call.operator, arguments=arguments, shapes=call.shapes))


def take(build: Builder, call: Call) -> Any:
    """Square brackets: slices of a tensor, or one of several tensors."""
    source, index = call.get("input"), call.get("other")
    if not isinstance(source, Ref):
        return source[index]
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        at = indices.index(Ellipsis)
        indices[at : at + 1] = [slice(None)] * (len(source.shape) - len(indices) + 1)
    if not all(isinstance(item, slice) for item in indices):
        raise call.refusal(f"takes {index!r}, not slices")
    return _sliced(build, call, dict(enumerate(indices)))


def split(build: Builder, call: Call) -> tuple[Ref, ...]:
    """A tensor cut into several along one dimension."""
    axis = int(call.get("dim", 0)) % len(call.source.shape)
    parts, start = [], 0
    for number, shape in enumerate(call.shapes):
        part = Call(name=f"{call.name}.{number}", operator=call.operator, arguments=call.arguments, shapes=(shape,))
        parts.append(_sliced(build, part, {axis: slice(start, start + shape[axis])}))
        start += shape[axis]
    return tuple(parts)


def _sliced(build: Builder, call: Call, slices: dict[int, slice]) -> Ref:
    """One node for each dimension that loses something."""
    result = call.source
    for axis, given in slices.items():
        start, stop, step = given.indices(result.shape[axis])
        length = len(range(start, stop, step))
        if length == result.shape[axis]:
            continue
        if axis == 0 or step < 1 or length < 1:
            raise call.refusal(f"takes {given} of dimension {axis}")
        shape = (*result.shape[:axis], length, *result.shape[axis + 1 :])
        name = call.name if shape == call.shape else f"{call.name}.{axis}"
        settings: dict[str, Setting] = {"axis": axis, "start": start, "stop": stop, "step": step}
        result = build.add(Node(name=name, kind="slice", inputs=(result.name,), settings=settings), shape)
    return result


def pad(build: Builder, call: Call) -> Ref:
    """Zeros around a map: a depthwise convolution with weights of 1 pads, slices cut off what is too much."""
    source, given = call.source, tuple(call.get("pad"))
    given = given * 4 if len(given) == 1 else given
    if call.get("mode", "constant") != "constant" or call.get("value") or len(given) != 4 or min(given) < 0:
        raise call.refusal("is no padding of height and width with zeros")
    left, right, top, bottom = given
    padding = (max(top, bottom), max(left, right))
    channels = source.shape[1]
    node = Node(
        name=f"{call.name}.border",
        kind="conv",
        inputs=(source.name,),
        settings={"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": channels},
        weight=torch.ones(channels, 1, 1, 1),
        bias=torch.zeros(channels),
    )
    sides = [size + 2 * border for size, border in zip(source.shape[2:], padding, strict=True)]
    bordered = build.add(node, (*source.shape[:2], *sides))
    slices = {
        2: slice(padding[0] - top, sides[0] - padding[0] + bottom),
        3: slice(padding[1] - left, sides[1] - padding[1] + right),
    }
    inner = Call(name=call.name, operator=call.operator, arguments={"input": bordered}, shapes=call.shapes)
    return _sliced(build, inner, slices)


def _moved(build: Builder, call: Call, kind: Kind, settings: dict[str, Setting]) -> Ref:
    node = Node(name=call.name, kind=kind, inputs=(call.source.name,), settings=settings)
    return build.add(node, call.shape)
