"""Channel rules of operators that put channels into another order, repeat them or take the largest."""

from __future__ import annotations

from typing import Any

import numpy as np

from pruning.channels.recording import Call, Channels, Tracked, UnknownOperator, from_front
from pruning.channels.shape_rules import elementwise


def movedim(call: Call) -> Channels:
    """Follow the dimension of the channels while one dimension is moved."""
    value, source, destination = call.input, call.argument(1, "source"), call.argument(2, "destination")
    if not isinstance(source, int) or not isinstance(destination, int):
        raise UnknownOperator("it moves several dimensions")
    order = list(range(value.ndim))
    order.remove(from_front(source, ndim=value.ndim))
    order.insert(from_front(destination, ndim=value.ndim), from_front(source, ndim=value.ndim))
    return Channels(ids=value.ids, axis=order.index(value.axis))


def pixel_shuffle(call: Call) -> Channels:
    """Tie the channels that become the positions of one, factor x factor of them."""
    value, factor = call.input, _factor(call, "upscale_factor")
    groups = value.along(value.ndim - 3).reshape(-1, factor**2)
    call.recording.ids.tie(np.repeat(groups[:, 0], factor**2), groups.ravel())
    return Channels(ids=groups[:, 0].copy(), axis=value.ndim - 3)


def pixel_unshuffle(call: Call) -> Channels:
    """Repeat each channel for each of the positions that become channels."""
    value = call.input
    return Channels(
        ids=np.repeat(value.along(value.ndim - 3), _factor(call, "downscale_factor") ** 2), axis=value.ndim - 3
    )


def channel_shuffle(call: Call) -> Channels:
    """Turn (groups, channels of a group) around; tie what is at one place in its group, so that groups stay equal."""
    value = call.input
    groups: Any = call.argument(1, "groups") if call.module is None else call.module.groups
    ids = value.along(1).reshape(int(groups), -1)
    call.recording.ids.tie(np.tile(ids[0], len(ids)), ids.ravel())
    return Channels(ids=ids.T.ravel(), axis=1)


def glu(call: Call) -> Channels:
    """Tie the two halves, one of which gates the other."""
    value = call.input
    dim: Any = call.argument(1, "dim", -1) if call.module is None else call.module.dim
    if from_front(int(dim), ndim=value.ndim) != value.axis:
        return value.channels
    first, second = np.split(value.ids, 2)
    call.recording.ids.tie(first, second)
    return Channels(ids=first, axis=value.axis)


def repeat(call: Call) -> Channels:
    """List the channels as often as they are repeated."""
    value, times = call.input, call.numbers(1, "repeats")
    added = len(times) - value.ndim
    if added < 0 or not all(type(each) is int for each in times):
        raise UnknownOperator("its repeats are computed")
    axis = value.axis + added
    return Channels(ids=np.tile(value.ids, times[axis]), axis=axis)


def extreme(call: Call) -> Any:
    """Follow a maximum or minimum: of two tensors, of all values, or with its places along one dimension."""
    if isinstance(call.argument(1, "other"), Tracked):
        return elementwise(call)
    value, dim = call.input, call.argument(1, "dim")
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise UnknownOperator("it works on all values")
    axis = from_front(dim, ndim=value.ndim)
    if axis == value.axis:
        call.recording.ids.protect(value.ids, f"{call.node.name} works across channels")
        return None
    is_kept = bool(call.argument(2, "keepdim", False))
    channels = Channels(ids=value.ids, axis=value.axis - (axis < value.axis and not is_kept))
    return channels, channels


def _factor(call: Call, name: str) -> int:
    """Return the factor of a pixel shuffle."""
    factor: Any = call.argument(1, name) if call.module is None else getattr(call.module, name)
    return int(factor)
