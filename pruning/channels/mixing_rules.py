"""Channel rules of operators that mix values: softmax, normalisation over channels, matrix products, attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from pruning.channels.recording import Call, Channels, Stored, Tracked, UnknownOperator, from_front, tracked_in


def softmax(call: Call) -> Channels:
    """Pass on channels whose positions are mixed; protect channels that are mixed themselves."""
    dim = call.module.dim if call.module is not None else call.argument(1, "dim")
    if not isinstance(dim, int):
        raise UnknownOperator("its dimension is not given")
    return _mixed(call, [from_front(dim, ndim=call.input.ndim)])


def layer_norm(call: Call) -> Channels:
    """Pass on the channels; protect those that are normalised over, since all of them enter mean and variance."""
    module, ndim = call.module, call.input.ndim
    shape: Any = call.argument(1, "normalized_shape") if module is None else module.normalized_shape
    return _mixed(call, range(ndim - len(shape), ndim))


def group_norm(call: Call) -> Channels:
    """Pass on the channels, protected: they are normalised over."""
    return _mixed(call, range(1, call.input.ndim))


def _mixed(call: Call, dimensions: Iterable[int]) -> Channels:
    value = call.input
    if value.axis in dimensions:
        call.recording.ids.protect(value.ids, f"{call.node.name} works across channels")
    return value.channels


def matmul(call: Call) -> Channels | None:
    """Follow the channels of a product (..., n, k) x (..., k, m): along n, m or what stands before them."""
    first, second = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    return _product(call, first, second)


def _product(call: Call, first: Any, second: Any) -> Channels | None:
    """Protect channels that are summed over, tie those of both, and return those of the product."""
    if any(_shape(each) is None or len(_shape(each)) < 2 for each in (first, second)):
        raise UnknownOperator("it multiplies by a vector or a number")
    left: list[tuple[Tracked, int, Any]] = []
    for value, other, summed in ((first, second, -1), (second, first, -2)):
        if not isinstance(value, Tracked):
            continue
        behind = value.axis - value.ndim
        if behind == summed:
            call.recording.ids.protect(value.ids, f"{call.node.name} works across channels")
        else:
            left.append((value, behind, other))
    for value, behind, other in left:
        if behind < -2:
            _tie_along(call, value, other, behind)
    if not left:
        return None
    if len({behind for _, behind, _ in left}) > 1:
        raise UnknownOperator("it has channels along two dimensions")
    value, behind, _ = left[0]
    return Channels(ids=value.ids, axis=call.output.ndim + behind)


def _tie_along(call: Call, value: Tracked, other: Any, behind: int) -> None:
    """Tie the channels along a dimension that both factors have, such as the heads of attention."""
    if isinstance(other, Tracked) and other.axis - other.ndim == behind and len(other.ids) == len(value.ids):
        call.recording.ids.tie(value.ids, other.ids)
    elif len(_shape(other)) + behind >= 0 and _shape(other)[behind] > 1:
        raise UnknownOperator("it multiplies channels by a tensor of one matrix per channel")


def multihead_attention(call: Call) -> tuple[Channels, None]:
    """Keep what `nn.MultiheadAttention` reads and makes, whose width is that of all its heads."""
    last = call.output[0].ndim - 1
    for value in tracked_in((call.args, call.kwargs)):
        call.recording.ids.protect(value.ids, f"{call.node.target} is attention with a fixed width")
    width = call.output[0].shape[last]
    reason = f"{call.node.target} is attention with a fixed width"
    return Channels(ids=call.recording.ids.new_protected(width, reason), axis=last), None


def _shape(value: Any) -> Any:
    tensor = value.tensor if isinstance(value, Tracked | Stored) else value
    return tuple(tensor.shape) if isinstance(tensor, Tensor) else None


def attention(call: Call) -> Channels | None:
    """Follow scaled dot-product attention: heads of query, key and value are tied, each is cut whole."""
    query, key, value = (call.argument(place, name) for place, name in enumerate(("query", "key", "value")))
    mask = call.argument(3, "attn_mask")
    for each in (query, key):
        if isinstance(each, Tracked) and each.axis == each.ndim - 1:
            call.recording.ids.protect(each.ids, f"{call.node.name} works across channels")
    if not isinstance(value, Tracked):
        raise UnknownOperator("its values have no known channels")
    behind = value.axis - value.ndim
    for each in (query, key, mask):
        if isinstance(each, Tracked) and each.axis - each.ndim != behind:
            call.recording.ids.protect(each.ids, f"{call.node.name} mixes them with others")
    if behind == -1:
        return value.channels
    if behind == -2:
        raise UnknownOperator("it works across channels")
    for each in (query, key, mask):
        if each is not None:
            _tie_along(call, value, each, behind)
    return value.channels
