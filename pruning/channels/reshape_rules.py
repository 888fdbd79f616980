"""Channel rules of operators that give a tensor another shape.

The dimensions before and after are matched from the front in the smallest groups that hold equally many values. What
happens to the channels is decided by the group that contains them: they stay, are joined with positions, or are
divided among several dimensions, of which a cut can then shorten one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pruning.channels.ids import IntArray
from pruning.channels.recording import Call, Channels, Count, CountedSize, PartRecord, Tracked, UnknownOperator


def reshape(call: Call) -> Channels:
    """Follow the channels of `view` and `reshape`; the size that holds them must follow a cut."""
    channels = _reshaped(call)
    sizes = call.numbers(1, "shape" if call.node.target != "view" else "size")
    _follow(call, sizes, channels)
    return channels


def reshape_as(call: Call) -> Channels:
    """Follow the channels of `view_as`: they become as many as those of the other tensor."""
    channels, other = _reshaped(call), call.argument(1, "other")
    if not isinstance(other, Tracked) or other.axis != channels.axis or other.ids.shape != channels.ids.shape:
        raise UnknownOperator("its shape is that of a tensor with other channels")
    call.recording.ids.tie(channels.ids, other.ids)
    return channels


def flatten(call: Call) -> Channels:
    """Follow the channels through a flattening, whose sizes are never given."""
    return _reshaped(call)


def expand(call: Call) -> Channels:
    """Follow channels while other dimensions are repeated."""
    value, sizes = call.input, call.numbers(1, "size")
    axis = value.axis + call.output.ndim - value.ndim
    if call.output.shape[axis] != len(value.ids):
        raise UnknownOperator("it spreads one channel over others")
    channels = Channels(ids=value.ids, axis=axis)
    _follow(call, sizes, channels)
    return channels


def expand_as(call: Call) -> Channels:
    """Tie the channels one by one with those of the other tensor."""
    other = call.argument(1, "other")
    if not isinstance(other, Tracked) or other.ids.shape != call.input.ids.shape:
        raise UnknownOperator("it broadcasts one channel over others")
    call.recording.ids.tie(call.input.ids, other.ids)
    return Channels(ids=call.input.ids, axis=other.axis)


def _follow(call: Call, sizes: Sequence[Any], channels: Channels) -> None:
    """See to it that the given size of the channels follows a cut.

    It does if it is -1 or computed from a channel count; a number in the code is changed by surgery.
    """
    for place, size in enumerate(sizes):
        if place != channels.axis and isinstance(size, Count):
            _keep_number(call, place, size)
    if channels.axis >= len(sizes):
        raise UnknownOperator("its sizes are not given one by one")
    size = sizes[channels.axis]
    if isinstance(size, Count):
        at = channels.axis if _is_written(call, channels.axis) else None
        if at is None and size.scale == 1 and size.ids.shape == channels.ids.shape:
            call.recording.ids.tie(size.ids, channels.ids)
        counted = CountedSize(count=size, ids=channels.ids, node=call.node.name, place=at)
        call.recording.counts.append(counted)
    elif size != -1:
        _change_number(call, channels)


def _change_number(call: Call, channels: Channels) -> None:
    """Note a number of channels in the code, which a cut changes."""
    if not _is_written(call, channels.axis) or not isinstance(_written(call)[channels.axis], int):
        raise UnknownOperator("its number of channels is computed")
    record = PartRecord(kind="size", axis=channels.axis, input_ids=channels.ids, output_ids=(channels.ids,))
    call.recording.parts.append((call.node.name, record))


def _keep_number(call: Call, place: int, count: Count) -> None:
    """Note a size that is computed from a number of channels and must stay when these are cut."""
    if not _is_written(call, place):
        call.recording.ids.protect(count.ids, f"{call.node.name} takes the number of channels for another size")
        return
    record = PartRecord(kind="constant", axis=place, input_ids=count.ids, output_ids=(), entry=int(count))
    call.recording.parts.append((call.node.name, record))


def _written(call: Call) -> Sequence[Any]:
    """Return the sizes as the code gives them."""
    sizes = call.node.args[1:]
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], list | tuple) else sizes


def _is_written(call: Call, place: int) -> bool:
    """Return whether the code gives the size at this position by itself, and not in a whole shape."""
    return len(_written(call)) == len(call.output.shape) > place


def _reshaped(call: Call) -> Channels:
    """Follow the channels from the shape of the input to that of the output."""
    value, after = call.input, tuple(call.output.shape)
    before = tuple(value.tensor.shape)
    if before[value.axis] == 1:
        # A single channel lies along every dimension.
        axis = min(1, len(after) - 1)
        return Channels(ids=np.full(after[axis], value.ids[0]), axis=axis)
    old, new = _group_of(before, after, value.axis)
    shape = [len(value.ids) if dim == value.axis else 1 for dim in old]
    labels = np.broadcast_to(value.ids.reshape(shape), [before[dim] for dim in old]).ravel()
    wide = [dim for dim in new if after[dim] > 1]
    if len(wide) == 1:
        return Channels(ids=labels, axis=wide[0])
    return _divided(call, labels.reshape([after[dim] for dim in wide]), wide, is_last=value.axis == len(before) - 1)


def _divided(call: Call, labels: IntArray, dims: list[int], *, is_last: bool) -> Channels:
    """Choose the dimension to cut along, and tie the channels at each of its indices.

    If the labels are equal along all others, nothing needs to be tied. Else it is, of channels behind the
    positions, the last but one: in attention the heads, (..., heads, channels of a head); of channels before the
    positions, the last one: in a shuffle the channels of a group, (groups, channels of a group, ...).
    """
    rows = [
        np.moveaxis(labels, place, 0).reshape(len(np.moveaxis(labels, place, 0)), -1) for place in range(len(dims))
    ]
    place = next((place for place, each in enumerate(rows) if np.all(each == each[:, :1])), None)
    if place is None:
        place = len(dims) - (2 if is_last else 1)
        call.recording.ids.tie(np.repeat(rows[place][:, 0], rows[place].shape[1]), rows[place].ravel())
    return Channels(ids=rows[place][:, 0].copy(), axis=dims[place])


def _group_of(before: Sequence[int], after: Sequence[int], axis: int) -> tuple[range, range]:
    """Return the dimensions that are reshaped together with `axis`: those before, and those after."""
    old = new = 0
    while old < len(before) and new < len(after):
        first_old, first_new = old, new
        old, new = old + 1, new + 1
        while (
            old <= len(before)
            and new <= len(after)
            and (left := math.prod(before[first_old:old])) != (right := math.prod(after[first_new:new]))
        ):
            if left < right:
                old += 1
            else:
                new += 1
        if axis < old:
            return range(first_old, old), range(first_new, new)
    raise UnknownOperator("its dimensions cannot be matched")
