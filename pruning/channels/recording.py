"""The records that a pass over a network collects, and the description of an operator that a rule receives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor, fx, nn

from pruning.channels.ids import ChannelIds, IntArray

FoundT = TypeVar("FoundT")
PartKind = Literal["take", "split", "size", "constant", "groups"]


class UnknownOperator(Exception):
    """An operator, or a use of one, that no rule covers; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of a tensor: the id of each (C,), and the dimension they lie along; an id may occur repeatedly."""

    ids: IntArray
    axis: int


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A tensor whose channels are known.

    Attributes:
        tensor: Tensor of any shape.
        channels: Its channels, as many as the tensor is long along their dimension.
        stored: Name of the parameter or buffer that it is; None for a computed tensor.
    """

    tensor: Tensor
    channels: Channels
    stored: str | None = None

    @property
    def ids(self) -> IntArray:
        """Id of each channel (C,)."""
        return self.channels.ids

    @property
    def axis(self) -> int:
        """Dimension that the channels lie along."""
        return self.channels.axis

    @property
    def ndim(self) -> int:
        """Number of dimensions of the tensor."""
        return self.tensor.ndim

    def along(self, axis: int) -> IntArray:
        """Return the id of each index of a dimension.

        Raises:
            UnknownOperator: The channels lie along another one.
        """
        if axis == self.axis:
            return self.ids
        if len(self.ids) and np.all(self.ids == self.ids[0]):
            return np.full(self.tensor.shape[axis], self.ids[0])
        raise UnknownOperator(f"its channels lie along dimension {self.axis} and not {axis}")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A parameter or buffer of several dimensions, under its name in the network."""

    tensor: Tensor
    name: str


class Count(int):
    """A number of channels that the code of a network reads, as in `x.shape[1]`, or a multiple or part of one.

    Attributes:
        ids: Channels that are counted (C,).
        scale: This number per channel.
    """

    ids: IntArray
    scale: Fraction

    @classmethod
    def of(cls, ids: IntArray, scale: Fraction = Fraction(1)) -> Count:
        """Count these channels."""
        count = cls(len(ids) * scale)
        count.ids, count.scale = ids, scale
        return count


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """A layer that has weights per channel, with ids not yet resolved; its fields are those of `LayerChannels`."""

    kind: str
    module: nn.Module
    input_ids: IntArray
    output_ids: IntArray
    is_called: bool = True


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """An operator whose code holds channel numbers, which a cut changes; ids not yet resolved.

    Attributes:
        kind: "take" for an index, "split" for sizes of parts, "size" for a size to reshape to that is the number of
            channels, "constant" for one that is computed from it and must stay, "groups" for those of a convolution.
        axis: Dimension of the channels in the input; for "size" and "constant" the position of the size.
        input_ids: Ids of the input channels (C,).
        output_ids: Ids of the channels of each output.
        positions: Input channels that "take" takes, as indices; else None.
        entry: Position among the indices of "take"; the size of "constant".
    """

    kind: PartKind
    axis: int
    input_ids: IntArray
    output_ids: tuple[IntArray, ...]
    positions: IntArray | None = None
    entry: int = 0


@dataclass(frozen=True, kw_only=True)
class CountedSize:
    """A size to reshape to that the code computes from a count of channels.

    Attributes:
        count: The count.
        ids: Ids that the size must be the number of (C,).
        node: Name of the operator.
        place: Position of the size; None where it is not written one by one.
    """

    count: Count
    ids: IntArray
    node: str
    place: int | None


@dataclass(kw_only=True)
class Recording:
    """Everything recorded so far.

    Attributes:
        ids: Ids, ties and protections.
        layers: Layers by module path.
        calls: Path of the layer that each node applies, by node name.
        parts: Parts with the names of their nodes.
        stored: Channels of parameters and buffers outside of layers, by name.
        stored_uses: How often each of them is used by its channels.
        counts: Sizes that are computed from counts.
    """

    ids: ChannelIds = field(default_factory=ChannelIds)
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    calls: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[str, PartRecord]] = field(default_factory=list)
    stored: dict[str, Channels] = field(default_factory=dict)
    stored_uses: Counter[str] = field(default_factory=Counter)
    counts: list[CountedSize] = field(default_factory=list)

    def add_layer(self, name: str, layer: LayerRecord, *, node: str) -> None:
        """Record a layer that a node applies; if it is used twice, tie its inputs and its outputs of both uses."""
        self.calls[node] = name
        known = self.layers.setdefault(name, layer)
        if known is not layer:
            self.ids.tie(known.input_ids, layer.input_ids)
            self.ids.tie(known.output_ids, layer.output_ids)

    def add_stored(self, name: str, axis: int, ids: IntArray) -> None:
        """Record that a parameter or buffer has these channels along a dimension.

        Raises:
            UnknownOperator: It is used with channels along another dimension as well.
        """
        known = self.stored.setdefault(name, Channels(ids=ids, axis=axis))
        if known.axis != axis:
            raise UnknownOperator(f"{name} is used along dimension {known.axis} and along {axis}")
        self.ids.tie(known.ids, ids)
        self.stored_uses[name] += 1


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator of a traced network.

    Attributes:
        node: Traced node; computed arguments are nodes themselves.
        module: Module of a `call_module`, otherwise None.
        args: Positional arguments, with `Tracked` in the place of tensors whose channels are known, `Stored` in that
            of other parameters and buffers, and `Count` in that of numbers of channels.
        kwargs: Keyword arguments, likewise.
        output: Output of the operator; tensors without ids.
        recording: Record to which rules add layers, ties and protections.
        owner_of: Function that returns the module with this path.
    """

    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    recording: Recording
    owner_of: Callable[[str], nn.Module]

    @property
    def input(self) -> Tracked:
        """First argument, a tensor whose channels are known.

        Raises:
            UnknownOperator: The first argument is not such a tensor.
        """
        first = self.argument(0, "input")
        if not isinstance(first, Tracked):
            raise UnknownOperator("its first argument has no known channels")
        return first

    def read_along(self, axis: int) -> IntArray:
        """Return the ids of what a layer reads along a dimension; new, protected ones for a tensor without channels.

        Raises:
            UnknownOperator: The channels lie along another dimension.
        """
        return self.ids_along(self.argument(0, "input"), axis, otherwise="no layer produces it as channels")

    def ids_along(self, value: Any, axis: int, *, otherwise: str) -> IntArray:
        """Return the ids along a dimension of a tensor; of one without channels new ones, protected as `otherwise`.

        Raises:
            UnknownOperator: The channels lie along another dimension, or it is no tensor.
        """
        if isinstance(value, Tracked):
            return value.along(axis)
        if not isinstance(value, Tensor | Stored):
            raise UnknownOperator("it takes something other than tensors")
        size = (value.tensor if isinstance(value, Stored) else value).shape[axis]
        return self.recording.ids.new_protected(size, otherwise)

    @property
    def layer(self) -> nn.Module:
        """Module of a `call_module`."""
        assert self.module is not None
        return self.module

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def numbers(self, position: int, name: str) -> tuple[Any, ...]:
        """Return the arguments from `position` on, or under `name`, whether given one by one or as one list."""
        given = self.args[position:] or (self.kwargs.get(name, ()),)
        return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else tuple(given)

    def dimension(self, position: int, name: str, default: int) -> int:
        """Return an argument that names a dimension of the input, counted from the front."""
        return from_front(self.argument(position, name, default), ndim=self.input.ndim)


# Returns the channels of an operator's output: for one tensor, or for each tensor of a tuple; None for no tensors or
# tensors without channels; numbers and counts in place of numbers.
Rule = Callable[[Call], Any]


def tracked_in(values: Any) -> Iterator[Tracked]:
    """Yield every tracked tensor in arguments, however nested."""
    return _found_in(values, Tracked)


def counts_in(values: Any) -> Iterator[Count]:
    """Yield every count of channels in arguments, however nested."""
    return _found_in(values, Count)


def _found_in(values: Any, kind: type[FoundT]) -> Iterator[FoundT]:
    if isinstance(values, kind):
        yield values
    else:
        for value in _items(values):
            yield from _found_in(value, kind)


def _items(values: Any) -> tuple[Any, ...]:
    if isinstance(values, slice):
        return (values.start, values.stop, values.step)
    if isinstance(values, dict):
        return tuple(values.values())
    return tuple(values) if isinstance(values, list | tuple) else ()


def from_front(dimension: int, *, ndim: int) -> int:
    """Convert a dimension that may be negative to its index from the front."""
    return dimension + ndim if dimension < 0 else dimension
