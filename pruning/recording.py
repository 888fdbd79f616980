"""What a pass over a network notes down, and what a rule is told of the operator it judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from pruning.channel_ids import ChannelIds, IntArray


class UnknownOperator(Exception):
    """An operator, or a use of one, that no rule covers; the message says what about it."""


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """A tensor whose channels are known.

    Attributes:
        tensor: Of at least two dimensions, channels along the second.
        ids: The id of each channel (C,); one may occur several times.
    """

    tensor: Tensor
    ids: IntArray

    @property
    def ndim(self) -> int:
        """Dimensions of the tensor."""
        return self.tensor.ndim


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """A layer with weights per channel, ids not yet resolved."""

    kind: str
    module: nn.Module
    input_ids: IntArray
    output_ids: IntArray


@dataclass(frozen=True, kw_only=True)
class PartRecord:
    """An operator that takes channels by their number: the ids it reads and those of each of its outputs."""

    input_ids: IntArray
    output_ids: tuple[IntArray, ...]


@dataclass(kw_only=True)
class Recording:
    """Everything noted so far; layers by module path, parts by node name."""

    ids: ChannelIds = field(default_factory=ChannelIds)
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    parts: dict[str, PartRecord] = field(default_factory=dict)

    def add_layer(self, name: str, layer: LayerRecord) -> None:
        """Note a layer; one that is used twice reads and makes the same channels both times."""
        known = self.layers.setdefault(name, layer)
        if known is not layer:
            self.ids.tie(known.input_ids, layer.input_ids)
            self.ids.tie(known.output_ids, layer.output_ids)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One operator of a traced network.

    Attributes:
        node: As traced; its arguments are nodes where they are computed.
        module: Of a `call_module`.
        args: Arguments, with `Tracked` in the place of tensors whose channels are known.
        kwargs: Arguments by name.
        output: What the operator gave; tensors without ids.
        recording: Where rules note layers, ties and protections.
        value_of: The value of an earlier node.
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
        """The first argument.

        Raises:
            UnknownOperator: It is no tensor with known channels.
        """
        first = self.argument(0, "input")
        if not isinstance(first, Tracked):
            raise UnknownOperator("its first argument has no known channels")
        return first

    @property
    def layer(self) -> nn.Module:
        """The module of a `call_module`."""
        assert self.module is not None
        return self.module

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def numbers(self, position: int, name: str) -> tuple[Any, ...]:
        """Arguments from `position` on, or under `name`, whether given one by one or as one list."""
        given = self.args[position:] or (self.kwargs.get(name, ()),)
        return tuple(given[0]) if len(given) == 1 and isinstance(given[0], list | tuple) else tuple(given)

    def dimension(self, position: int, name: str, default: int) -> int:
        """An argument that names a dimension of the input, counted from the front."""
        return from_front(self.argument(position, name, default), ndim=self.input.ndim)


# From an operator to the ids of its output: of one tensor, or of each tensor of a tuple; None: no tensors.
Rule = Callable[[Call], IntArray | tuple[IntArray, ...] | None]


def from_front(dimension: int, *, ndim: int) -> int:
    """A dimension that may be negative, as a number of at least 0."""
    return dimension + ndim if dimension < 0 else dimension
