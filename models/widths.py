"""Channel counts: what the layer list implies, and what a pruned network really has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Width:
    """Channels of a tensor.

    Attributes:
        nominal: Implied by the layer list; decides what the network does (a shortcut adds or not).
        actual: What flows, smaller after pruning.
    """

    nominal: int
    actual: int

    def __add__(self, other: Width) -> Width:
        """The width of two concatenated tensors."""
        return Width(self.nominal + other.nominal, self.actual + other.actual)


class Widths:
    """Looks up the actual output channels of convolutions, by module path below a block.

    Args:
        table: Module path such as `model.4.cv1` to output channels, where they differ from the nominal ones.
        path: The block's own module path.
    """

    def __init__(self, table: Mapping[str, int], *, path: str) -> None:
        self._table = table
        self._path = path
        self._unused = set(table)

    def scope(self, name: str) -> Widths:
        """The look-up for a child block; both remember together which entries were used."""
        child = Widths(self._table, path=f"{self._path}.{name}")
        child._unused = self._unused
        return child

    def conv(self, name: str, nominal: int) -> Width:
        """Output width of the child convolution `name`."""
        return self.scope(name).own(nominal)

    def own(self, nominal: int) -> Width:
        """Output width of this very block, when it is a convolution."""
        self._unused.discard(self._path)
        return Width(nominal, self._table.get(self._path, nominal))

    @property
    def unused(self) -> tuple[str, ...]:
        """Entries that no convolution has asked for so far."""
        return tuple(sorted(self._unused))
