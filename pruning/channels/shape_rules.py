"""Channel rules of operators without weights, which pass channels on, combine them or turn dimensions.

A rule that cannot be sure raises `UnknownOperator`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from models.operators import traced_operator
from pruning.channels.recording import Call, Channels, Count, Stored, Tracked, UnknownOperator, from_front

# Operators that leave a channel of zeros as it is.
_SCALINGS = ("mul", "div")
# Attributes of a tensor that hold no values of it.
_FACTS = ("dtype", "device", "ndim", "layout", "is_cuda", "requires_grad")


def pass_on(call: Call) -> Channels:
    """Pass on the channels of an operator that works on each value alone, whatever its other arguments."""
    return call.input.channels


def of_windows(call: Call) -> Channels:
    """Pass on the channels of a pooling or padding of the last two dimensions."""
    return _before(call, call.input.ndim - 2)


def of_rows(call: Call) -> Channels:
    """Pass on the channels of a pooling of the last dimension."""
    return _before(call, call.input.ndim - 1)


def of_volumes(call: Call) -> Channels:
    """Pass on the channels of a pooling of the last three dimensions."""
    return _before(call, call.input.ndim - 3)


def interpolate(call: Call) -> Channels:
    """Pass on the channels of a resizing of all dimensions but the first two."""
    return _before(call, 2)


def _before(call: Call, first_position: int) -> Channels:
    if call.input.axis >= first_position:
        raise UnknownOperator("it mixes channels as if they were positions")
    return call.input.channels


def elementwise(call: Call) -> Channels:
    """Tie the channels of the tensors that a function takes at each place; protect a channel that is broadcast."""
    operands = [*call.args, *call.kwargs.values()]
    tracked = [operand for operand in operands if isinstance(operand, Tracked)]
    if not tracked:
        raise UnknownOperator("its tensors have no known channels")
    # Dimensions of tensors that are broadcast are counted from the back.
    widest = max(tracked, key=lambda operand: len(operand.ids))
    behind = widest.axis - widest.ndim
    for operand in tracked:
        _join(call, operand, widest, behind=behind)
    for operand in operands:
        if isinstance(operand, Stored | Tensor):
            _check_stored(call, operand, widest, behind=behind)
    return Channels(ids=widest.ids, axis=call.output.ndim + behind)


def _join(call: Call, operand: Tracked, widest: Tracked, *, behind: int) -> None:
    """Tie the channels of an operand with those of the widest one, or protect its single channel."""
    ids = call.recording.ids
    if len(operand.ids) == len(widest.ids) and operand.axis - operand.ndim == behind:
        ids.tie(operand.ids, widest.ids)
    elif len(np.unique(operand.ids)) == 1 and (operand.ndim + behind < 0 or operand.tensor.shape[behind] == 1):
        ids.protect(operand.ids, f"{call.node.name} broadcasts it over {len(widest.ids)} channels")
        _protect_unless_scaled(call, widest)
    else:
        raise UnknownOperator("it combines channels along different dimensions")


def _protect_unless_scaled(call: Call, widest: Tracked) -> None:
    """Protect channels that do not become zero with their scales, since something else is put into each of them."""
    if traced_operator(call.node) not in _SCALINGS:
        call.recording.ids.protect(widest.ids, f"{call.node.name} puts one map into each of the channels")


def _check_stored(call: Call, operand: Stored | Tensor, widest: Tracked, *, behind: int) -> None:
    """Record the channels of a parameter or buffer with a value per channel."""
    tensor = operand.tensor if isinstance(operand, Stored) else operand
    if tensor.ndim + behind < 0 or tensor.shape[behind] == 1:
        if tensor.numel() > 1 and not isinstance(operand, Stored):
            _protect_unless_scaled(call, widest)
        return
    if not isinstance(operand, Stored) or tensor.shape[behind] != len(widest.ids):
        raise UnknownOperator("it combines channels with a tensor of one value per channel that no layer makes")
    call.recording.add_stored(operand.name, tensor.ndim + behind, widest.ids)


def attribute(call: Call) -> Any:
    """Read an attribute of a tensor: its shape, its values by another name, or a fact that no cut changes."""
    name, value = call.args[1], call.input
    if name == "shape":
        return _sizes(value)
    if name == "data":
        return value.channels
    if name in ("T", "mT", "H", "mH"):
        if value.ndim < 2 or (name in ("T", "H") and value.ndim != 2):
            raise UnknownOperator("it turns dimensions around")
        return Channels(ids=value.ids, axis=_swapped(value.axis, value.ndim - 2, value.ndim - 1))
    if name not in _FACTS:
        raise UnknownOperator(f"the attribute {name} is unknown")
    return None


def size(call: Call) -> Any:
    """Read one size of a tensor or all of them."""
    dim = call.argument(1, "dim")
    sizes = _sizes(call.input)
    return sizes if dim is None else sizes[dim]


def _sizes(value: Tracked) -> tuple[int, ...]:
    sizes: list[int] = list(value.tensor.shape)
    sizes[value.axis] = Count.of(value.ids)
    return tuple(sizes)


def fact(call: Call) -> None:
    """Read what no cut changes, such as the number of dimensions."""


def permute(call: Call) -> Channels:
    """Follow the dimension of the channels."""
    value = call.input
    dims = [from_front(dim, ndim=value.ndim) for dim in call.numbers(1, "dims")]
    return Channels(ids=value.ids, axis=dims.index(value.axis))


def transpose(call: Call) -> Channels:
    """Follow the dimension of the channels."""
    first, second = call.dimension(1, "dim0", 0), call.dimension(2, "dim1", 1)
    return Channels(ids=call.input.ids, axis=_swapped(call.input.axis, first, second))


def _swapped(axis: int, first: int, second: int) -> int:
    return {first: second, second: first}.get(axis, axis)


def squeeze(call: Call) -> Channels:
    """Follow the dimension of the channels while others of one index are removed."""
    value, dims = call.input, call.numbers(1, "dim")
    if not dims:
        raise UnknownOperator("it removes every dimension of one index")
    gone = [from_front(dim, ndim=value.ndim) for dim in dims]
    gone = [dim for dim in gone if value.tensor.shape[dim] == 1]
    return Channels(ids=value.ids, axis=_without(value.axis, gone))


def unsqueeze(call: Call) -> Channels:
    """Follow the dimension of the channels while another one is added."""
    value = call.input
    added = from_front(call.argument(1, "dim"), ndim=value.ndim + 1)
    return Channels(ids=value.ids, axis=value.axis + (added <= value.axis))


def unbind(call: Call) -> tuple[Channels, ...]:
    """Follow the channels into each index of another dimension."""
    axis = _without(call.input.axis, [call.dimension(1, "dim", 0)])
    return tuple(Channels(ids=call.input.ids, axis=axis) for _ in call.output)


def _without(axis: int, gone: list[int]) -> int:
    if axis in gone:
        raise UnknownOperator("it works on channels")
    return axis - sum(dim < axis for dim in gone)


def of_other_dimensions(call: Call) -> Channels:
    """Pass on the channels of an operator that moves values along given dimensions, if these are others."""
    # roll(x, shifts, dims), flip(x, dims)
    dims = call.argument(2, "dims", ()) if traced_operator(call.node) == "roll" else call.numbers(1, "dims")
    dims = (dims,) if isinstance(dims, int) else tuple(dims)
    if not dims or any(from_front(dim, ndim=call.input.ndim) == call.input.axis for dim in dims):
        raise UnknownOperator("it works on channels")
    return call.input.channels


def reduce(call: Call) -> Channels | None:
    """Pass on channels whose positions are reduced; protect channels that are reduced themselves."""
    value = call.input
    dims = call.argument(1, "dim")
    dims = (dims,) if isinstance(dims, int) and not isinstance(dims, bool) else dims
    if isinstance(dims, bool):
        raise UnknownOperator("its dimensions are not given by name")
    gone = [from_front(dim, ndim=value.ndim) for dim in dims or range(value.ndim)]
    if value.axis in gone:
        call.recording.ids.protect(value.ids, f"{call.node.name} works across channels")
        return None
    is_kept = call.argument(2, "keepdim", False)
    return Channels(ids=value.ids, axis=value.axis if is_kept else _without(value.axis, gone))


def pad(call: Call) -> Channels:
    """Pass on channels whose positions are padded; channels that are added belong to no layer."""
    value, amounts = call.input, call.argument(1, "pad")
    if len(amounts) <= 2 * (value.ndim - 1 - value.axis):
        return value.channels
    if len(amounts) > 2 * (value.ndim - value.axis) or call.argument(2, "mode", "constant") != "constant":
        raise UnknownOperator("it adds images, or channels that are no constants")
    before, after = (
        call.recording.ids.new_protected(count, f"{call.node.name} adds it")
        for count in (amounts[2 * (value.ndim - 1 - value.axis)], amounts[2 * (value.ndim - 1 - value.axis) + 1])
    )
    return Channels(ids=np.concatenate([before, value.ids, after]), axis=value.axis)
