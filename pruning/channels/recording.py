"""The records that a pass over a network collects, and the description of an operator that a rule receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from pruning.channels.ids import ChannelIds, IntArray


class UnknownOperator(Exception):
    """An operator, or a use of one, that no rule covers; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A tensor whose channels are known.

    Attributes:
        tensor: Tensor of at least two dimensions, channels along the second.
        ids: Id of each channel (C,); an id may occur several times.
    """

    tensor: Tensor
    ids: IntArray

    @property
    def ndim(self) -> int:
        """Number of dimensions of the tensor."""
        return self.tensor.ndim


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """A layer that has weights per channel, with ids not yet resolved."""

    kind: str
    module: nn.Module
    input_ids: IntArray
    output_ids: IntArray


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """An operator that takes channels by index: the ids of its input and of each of its outputs."""

    input_ids: IntArray
    output_ids: tuple[IntArray, ...]


@dataclass(kw_only=True)
class Recording:
    """Everything recorded so far: layers by module path, parts by node name."""

    ids: ChannelIds = field(default_factory=ChannelIds)
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    parts: dict[str, PartRecord] = field(default_factory=dict)

    def add_layer(self, name: str, layer: LayerRecord) -> None:
        """Record a layer; if it is used twice, tie its inputs and its outputs of both uses."""
        known = self.layers.setdefault(name, layer)
        if known is not layer:
            self.ids.tie(known.input_ids, layer.input_ids)
            self.ids.tie(known.output_ids, layer.output_ids)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator of a traced network.

    Attributes:
        node: Traced node; computed arguments are nodes themselves.
        module: Module of a `call_module`, otherwise None.
        args: Positional arguments, with `Tracked` in the place of tensors whose channels are known.
        kwargs: Keyword arguments, likewise.
        output: Output of the operator; tensors without ids.
        recording: Record to which rules add layers, ties and protections.
        value_of: Function that returns the value of an earlier node.
    """

    node: fx.Node
    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    recording: Recording
    value_of: Callable[[fx.Node], Any]

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


# Returns the output ids of an operator: for one tensor, or for each tensor of a tuple; None for no tensors.
Rule = Callable[[Call], IntArray | tuple[IntArray, ...] | None]


def from_front(dimension: int, *, ndim: int) -> int:
    """Convert a dimension that may be negative to its index from the front."""
    return dimension + ndim if dimension < 0 else dimension
