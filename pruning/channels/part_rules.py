"""Channel rules of operators that join lists of channels or take them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pruning.channels.ids import IntArray
from pruning.channels.recording import (
    Call,
    Channels,
    PartRecord,
    Tracked,
    UnknownOperator,
    counts_in,
    from_front,
)


def concat(call: Call) -> Channels:
    """Concatenate the channel lists, or tie them if another dimension is concatenated.

    Tensors without channels, such as coordinates, are kept whole.
    """
    tensors = call.argument(0, "tensors")
    known = next(tensor for tensor in tensors if isinstance(tensor, Tracked))
    dim = from_front(call.argument(1, "dim", 0), ndim=known.ndim)
    if dim != known.axis:
        return _tied(call, tensors, known)
    reason = f"{call.node.name} joins it to channels"
    return Channels(
        ids=np.concatenate([call.ids_along(tensor, dim, otherwise=reason) for tensor in tensors]), axis=dim
    )


def stack(call: Call) -> Channels:
    """Tie the channels of tensors that are laid along a new dimension."""
    tensors = call.argument(0, "tensors")
    known = next(tensor for tensor in tensors if isinstance(tensor, Tracked))
    added = from_front(call.argument(1, "dim", 0), ndim=known.ndim + 1)
    channels = _tied(call, tensors, known)
    return Channels(ids=channels.ids, axis=channels.axis + (added <= channels.axis))


def _tied(call: Call, tensors: Sequence[Any], known: Tracked) -> Channels:
    """Tie the channels of all tensors with those of one of them."""
    for tensor in tensors:
        if not isinstance(tensor, Tracked):
            raise UnknownOperator("it joins tensors whose channels are not known")
        call.recording.ids.tie(known.ids, tensor.along(known.axis))
    return known.channels


def split(call: Call) -> tuple[Channels, ...]:
    """Split the channel list among the outputs."""
    value, dim = call.input, call.dimension(2, "dim", 0)
    _join_counts(call, (call.args[1:], call.kwargs), is_of_channels=dim == value.axis)
    if dim != value.axis:
        return tuple(value.channels for _ in call.output)
    ends = np.cumsum([part.shape[dim] for part in call.output])
    parts = tuple(np.split(value.ids, ends[:-1]))
    record = PartRecord(kind="split", axis=dim, input_ids=value.ids, output_ids=parts)
    call.recording.parts.append((call.node.name, record))
    return tuple(Channels(ids=part, axis=dim) for part in parts)


def take(call: Call) -> Channels:
    """Take channels by a slice or a list, or pass them on if only other dimensions are indexed."""
    value = call.input
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    found: Channels | None = None
    dimension = made = 0
    for entry, chosen in _spelled_out(index, ndim=value.ndim):
        if chosen is None:
            made += 1
            continue
        _join_counts(call, chosen, is_of_channels=dimension == value.axis)
        if dimension == value.axis:
            found = _taken(call, chosen, index, entry, made)
        elif not isinstance(chosen, slice | int):
            raise UnknownOperator("it picks positions by other means than slices and integers")
        made += not isinstance(chosen, int)
        dimension += 1
    assert found is not None
    return found


def _join_counts(call: Call, values: Any, *, is_of_channels: bool) -> None:
    """See to it that the channels taken by a count are cut with those that are counted; positions never are."""
    for count in counts_in(values):
        if is_of_channels and count.ids.shape == call.input.ids.shape:
            call.recording.ids.tie(count.ids, call.input.ids)
        else:
            call.recording.ids.protect(count.ids, f"{call.node.name} takes others by their number")


def _spelled_out(index: Sequence[Any], *, ndim: int) -> list[tuple[int, Any]]:
    """List the indices of all dimensions with their positions in `index`; `...` and missing ones are full slices."""
    given = sum(entry is not None and entry is not Ellipsis for entry in index)
    full = [(-1, slice(None))] * (ndim - given)
    entries: list[tuple[int, Any]] = []
    for position, entry in enumerate(index):
        entries += full if entry is Ellipsis else [(position, entry)]
    return entries if Ellipsis in index else entries + full


def _taken(call: Call, chosen: Any, index: Sequence[Any], entry: int, axis: int) -> Channels:
    """Record a slice or list of channels, which lie along `axis` of the output."""
    value = call.input
    if chosen == slice(None):
        return Channels(ids=value.ids, axis=axis)
    is_list = isinstance(chosen, list) and all(type(each) is int for each in chosen)
    if not isinstance(chosen, slice) and (not is_list or any(isinstance(each, int) for each in index)):
        raise UnknownOperator("it picks channels by other means than a slice or a list of numbers")
    positions: IntArray = np.arange(len(value.ids))[chosen]
    part = value.ids[positions]
    record = PartRecord(
        kind="take", axis=value.axis, input_ids=value.ids, output_ids=(part,), positions=positions, entry=entry
    )
    call.recording.parts.append((call.node.name, record))
    return Channels(ids=part, axis=axis)
