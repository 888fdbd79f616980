"""Lower concatenations, slices and all other operators that move values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from quantization.lowering.building import Builder, Call, Ref
from quantization.lowering.graph import Node
from quantization.program.program import Kind, Setting

# End of a slice that is open.
_OPEN_END = 2**40


def identity(build: Builder, call: Call) -> Ref:
    """Return the input, for an operator that has no effect at inference."""
    return call.source


def upsample(build: Builder, call: Call) -> Ref:
    """Lower nearest-neighbour upsampling by a whole factor."""
    if call.get("mode", "nearest") not in ("nearest", "nearest-exact"):
        raise call.refusal(f"interpolates ({call.get('mode')})")
    return repeated(build, call)


def repeated(build: Builder, call: Call) -> Ref:
    """Repeat every value as often as the result is larger than the input."""
    given, wanted = call.source.shape[2:], call.shape[2:]
    if any(side % size for size, side in zip(given, wanted, strict=True)):
        raise call.refusal(f"makes {given[0]}x{given[1]} into {wanted[0]}x{wanted[1]}, no whole multiple")
    return moved(build, call, "upsample", {"scale": (wanted[0] // given[0], wanted[1] // given[1])})


def concat(build: Builder, call: Call) -> Ref:
    """Lower a concatenation of tensors."""
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
    """Lower a reshape that keeps the batch as the first dimension."""
    given, wanted = call.source.shape, call.shape
    if given == wanted:
        return call.source
    if wanted == (given[0], math.prod(given[1:])):
        return moved(build, call, "flatten", {"start_axis": 1})
    if wanted[0] != given[0] or len(wanted) < 2:
        raise call.refusal(f"reshapes {given} to {wanted}")
    return moved(build, call, "reshape", {"shape": wanted[1:]})


def permute(build: Builder, call: Call) -> Ref:
    """Lower a permutation of dimensions that keeps the batch first."""
    order = call.get("dims")
    axes = tuple(axis % len(call.shape) for axis in order) if isinstance(order, list | tuple) else ()
    if sorted(axes) != list(range(len(call.shape))) or axes[0] != 0:
        raise call.refusal(f"with order {order!r} moves the batch or is no order of dimensions")
    return moved(build, call, "permute", {"axes": axes})


def transpose(build: Builder, call: Call) -> Ref:
    """Lower an exchange of two dimensions."""
    axes = list(range(len(call.shape)))
    one, other = (int(call.get(name)) % len(axes) for name in ("dim0", "dim1"))
    axes[one], axes[other] = axes[other], axes[one]
    arguments = {**call.arguments, "dims": axes}
    return permute(build, Call(name=call.name, operator=call.operator, arguments=arguments, shapes=call.shapes))


def take(build: Builder, call: Call) -> Any:
    """Lower indexing: slices of a tensor, or one of several tensors."""
    source, index = call.get("input"), call.get("other")
    if not isinstance(source, Ref):
        return source[index]
    indices = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in indices:
        at = indices.index(Ellipsis)
        indices[at : at + 1] = [slice(None)] * (len(source.shape) - len(indices) + 1)
    if not all(isinstance(item, slice) for item in indices):
        raise call.refusal(f"takes {index!r}, not slices")
    return sliced(build, call, dict(enumerate(indices)))


def split(build: Builder, call: Call) -> tuple[Ref, ...]:
    """Lower a split of a tensor along one dimension."""
    axis = int(call.get("dim", 0)) % len(call.source.shape)
    parts, start = [], 0
    for number, shape in enumerate(call.shapes):
        part = Call(name=f"{call.name}.{number}", operator=call.operator, arguments=call.arguments, shapes=(shape,))
        parts.append(sliced(build, part, {axis: slice(start, start + shape[axis])}))
        start += shape[axis]
    return tuple(parts)


def sliced(build: Builder, call: Call, slices: dict[int, slice]) -> Ref:
    """Add one slice node for each dimension that gets shorter."""
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
        # An open end remains open, so that it fits maps of other sizes.
        last = _OPEN_END if given.stop is None else given.stop
        settings: dict[str, Setting] = {"axis": axis, "start": given.start or 0, "stop": last, "step": step}
        result = build.add(Node(name=name, kind="slice", inputs=(result.name,), settings=settings), shape)
    return result


def moved(build: Builder, call: Call, kind: Kind, settings: dict[str, Setting]) -> Ref:
    """Add a node that moves the values of the call's input."""
    node = Node(name=call.name, kind=kind, inputs=(call.source.name,), settings=settings)
    return build.add(node, call.shape)
