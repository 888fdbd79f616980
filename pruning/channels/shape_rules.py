"""Channel rules of operators without weights, which pass on, join, select or tie channels.

Channels lie along dimension 1 of every tensor. A rule that cannot be sure raises `UnknownOperator`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from models.operators import traced_operator
from pruning.channels.ids import IntArray
from pruning.channels.recording import Call, PartRecord, Tracked, UnknownOperator, from_front

# Operators that may take a channel count as an argument; any other use of it would change when channels are cut.
_RESHAPES = ("view", "reshape")


def pass_on(call: Call) -> IntArray:
    """Pass on the input channels of a pooling, resizing or dropout, which mix none of them."""
    return call.input.ids


def pointwise(call: Call) -> IntArray:
    """Pass on the input channels of a function of each value, whose other arguments are the same for all channels."""
    others = (value for value in (*call.args[1:], *call.kwargs.values()) if value is not call.input)
    if any(isinstance(other, Tracked) or (isinstance(other, Tensor) and other.numel() > 1) for other in others):
        raise UnknownOperator("it has another argument that is a tensor")
    return call.input.ids


def elementwise(call: Call) -> IntArray:
    """Tie the channels of two tensors that are combined elementwise; protect a channel that is broadcast."""
    operands = [call.argument(0, "input"), call.argument(1, "other")]
    tracked = [operand for operand in operands if isinstance(operand, Tracked)]
    ndim = call.output.ndim
    for operand in operands:
        if isinstance(operand, Tensor) and _size_at_channels(operand, ndim=ndim) != 1:
            raise UnknownOperator("it combines channels with a stored tensor of one value per channel")
        if isinstance(operand, Tracked) and operand.ndim != ndim:
            raise UnknownOperator(f"it combines tensors of {tracked[0].ndim} and {tracked[-1].ndim} dimensions")
    if len(tracked) == 1:
        return tracked[0].ids
    few, many = sorted((operand.ids for operand in tracked), key=len)
    if len(few) == len(many):
        call.recording.ids.tie(few, many)
    else:
        call.recording.ids.protect(few, f"{call.node.name} broadcasts it over {len(many)} channels")
    return many


def _size_at_channels(tensor: Tensor, *, ndim: int) -> int:
    """Return the size of a stored tensor along the channels of the `ndim`-dimensional tensor it is combined with."""
    position = tensor.ndim - (ndim - 1)
    return tensor.shape[position] if position >= 0 else 1


def concat(call: Call) -> IntArray:
    """Concatenate the channel lists, or tie them if another dimension is concatenated."""
    tensors = call.argument(0, "tensors")
    if not all(isinstance(tensor, Tracked) for tensor in tensors):
        raise UnknownOperator("it joins tensors whose channels are not known")
    ids: list[IntArray] = [tensor.ids for tensor in tensors]
    if from_front(call.argument(1, "dim", 0), ndim=tensors[0].ndim) == 1:
        return np.concatenate(ids)
    for other in ids[1:]:
        call.recording.ids.tie(ids[0], other)
    return ids[0]


def split(call: Call) -> tuple[IntArray, ...]:
    """Split the channel list among the outputs."""
    ids = call.input.ids
    if call.dimension(2, "dim", 0) != 1:
        return tuple(ids for _ in call.output)
    ends = np.cumsum([part.shape[1] for part in call.output])
    parts = tuple(np.split(ids, ends[:-1]))
    call.recording.parts[call.node.name] = PartRecord(input_ids=ids, output_ids=parts)
    return parts


def take(call: Call) -> IntArray:
    """Slice the channel list, or pass it on if only other dimensions are sliced."""
    index = call.args[1]
    entries = _without_ellipsis(index if isinstance(index, tuple) else (index,), ndim=call.input.ndim)
    if not all(isinstance(entry, slice) for entry in entries[:2]):
        raise UnknownOperator("it picks images or channels by other means than a slice")
    if not all(entry is None or isinstance(entry, slice | int) for entry in entries[2:]):
        raise UnknownOperator("it picks positions by other means than slices and integers")
    ids = call.input.ids
    if len(entries) < 2 or entries[1] == slice(None):
        return ids
    part: IntArray = ids[entries[1]]
    call.recording.parts[call.node.name] = PartRecord(input_ids=ids, output_ids=(part,))
    return part


def _without_ellipsis(entries: Sequence[Any], *, ndim: int) -> list[Any]:
    """Return index entries with `...` replaced by full slices."""
    given = sum(entry is not None and entry is not Ellipsis for entry in entries)
    fill = [slice(None)] * (ndim - given)
    position = next((place for place, entry in enumerate(entries) if entry is Ellipsis), len(entries))
    return [*entries[:position], *fill, *entries[position + 1 :]]


def flatten(call: Call) -> IntArray:
    """Repeat each id once per position that is flattened into the channels."""
    start, end = call.dimension(1, "start_dim", 0), call.dimension(2, "end_dim", -1)
    if start == 0:
        raise UnknownOperator("it mixes images")
    return call.input.ids if start > 1 else _per_position(call.input, end=end)


def flatten_module(call: Call) -> IntArray:
    """Apply the rule of `flatten` to an `nn.Flatten` module."""
    start, end = (from_front(getattr(call.layer, f"{name}_dim"), ndim=call.input.ndim) for name in ("start", "end"))
    if start == 0:
        raise UnknownOperator("it mixes images")
    return call.input.ids if start > 1 else _per_position(call.input, end=end)


def _per_position(value: Tracked, *, end: int) -> IntArray:
    return np.repeat(value.ids, math.prod(value.tensor.shape[2 : end + 1]))


def reshape(call: Call) -> IntArray:
    """Accept a reshape that leaves channels whole or flattens them, and follows a changed channel count."""
    before, after = call.input.tensor.shape, call.output.shape
    _check_follows_count(call)
    if after[:2] == before[:2]:
        return call.input.ids
    if len(after) == 2 and after[0] == before[0]:
        return _per_position(call.input, end=len(before) - 1)
    raise UnknownOperator("it rearranges channels")


def _check_follows_count(call: Call) -> None:
    """Raise unless the new channel count is -1 or read from a tensor, whose channels are then tied."""
    sizes = call.node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    count = sizes[1] if len(sizes) > 1 else None
    if count == -1:
        return
    source = _source_of_count(count) if isinstance(count, fx.Node) else None
    value = call.value_of(source) if source is not None else None
    if not isinstance(value, Tracked) or value.ids.shape != call.input.ids.shape:
        raise UnknownOperator("its channel count is fixed or computed")
    call.recording.ids.tie(value.ids, call.input.ids)


def _source_of_count(node: fx.Node) -> fx.Node | None:
    """Return the tensor whose size `node` reads, as in `x.size(i)` or `x.shape[i]`, or None."""
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    is_read = node.target == "size" or (node.target is getattr and node.args[1] == "shape")
    source = node.args[0] if is_read else None
    return source if isinstance(source, fx.Node) else None


def read(call: Call) -> None:
    """Accept reading sizes and types, as long as a channel count is used only to reshape."""
    ndim = call.input.ndim
    channel = (1, 1 - ndim)
    is_single = call.node.target == "size" and call.argument(1, "dim") is not None
    counts = [call.node] if is_single and call.argument(1, "dim") in channel else []
    if not is_single:
        counts = [user for user in call.node.users if user.target is operator.getitem and user.args[1] in channel]
    users = [user for count in counts for user in count.users]
    if any(traced_operator(user) not in _RESHAPES for user in users):
        raise UnknownOperator("its channel count is used in a computation")


def reduce(call: Call) -> IntArray:
    """Accept a mean, sum, maximum or minimum over positions only."""
    dims = call.argument(1, "dim")
    dims = (dims,) if isinstance(dims, int) else (dims or (0,))
    if any(from_front(dim, ndim=call.input.ndim) < 2 for dim in dims):
        raise UnknownOperator("it works across images or channels")
    return call.input.ids


def permute(call: Call) -> IntArray:
    """Accept a permutation of positions only."""
    if call.numbers(1, "dims")[:2] != (0, 1):
        raise UnknownOperator("it moves channels to another dimension")
    return call.input.ids


def of_positions(call: Call) -> IntArray:
    """Accept a transpose, squeeze or unsqueeze only of dimensions behind the channels."""
    dims = [*call.args[1:], *call.kwargs.values()]
    # Squeeze names dimensions of the input, unsqueeze dimensions of the output.
    ndim = max(call.input.ndim, call.output.ndim)
    if not dims or any(not isinstance(dim, int) or from_front(dim, ndim=ndim) < 2 for dim in dims):
        raise UnknownOperator("it works on images or channels")
    return call.input.ids


def expand_as(call: Call) -> IntArray:
    """Tie the channels one by one with those of the other tensor."""
    other = call.argument(1, "other")
    if not isinstance(other, Tracked) or other.ids.shape != call.input.ids.shape:
        raise UnknownOperator("it broadcasts one channel over others")
    call.recording.ids.tie(call.input.ids, other.ids)
    return call.input.ids


def pad(call: Call) -> IntArray:
    """Accept a padding of positions only."""
    if len(call.argument(1, "pad")) > 2 * (call.input.ndim - 2):
        raise UnknownOperator("it adds images or channels")
    return call.input.ids
