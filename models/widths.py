"""Channel counts: nominal ones that the layer list implies, and actual ones of a pruned network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Width:
    """The channel count of a tensor.

    Attributes:
        nominal: Channels that the layer list implies; they decide the structure (whether a shortcut adds).
        actual: Channels of the tensor itself, fewer after pruning.
    """

    nominal: int
    actual: int

    def __add__(self, other: Width) -> Width:
        """Return the width of two concatenated tensors."""
        return Width(self.nominal + other.nominal, self.actual + other.actual)


class Widths:
    """A look-up of the actual output channels of convolutions, by module path below a block.

    Args:
        table: Output channels that differ from the nominal ones, by module path such as `model.4.cv1`.
        path: Module path of the block.
    """

    def __init__(self, table: Mapping[str, int], *, path: str) -> None:
        self._table = table
        self._path = path
        self._unused = set(table)

    def scope(self, name: str) -> Widths:
        """Return the look-up for a child block; parent and child share the record of unused entries."""
        child = Widths(self._table, path=f"{self._path}.{name}")
        child._unused = self._unused
        return child

    def conv(self, name: str, nominal: int) -> Width:
        """Return the output width of the child convolution `name`."""
        return self.scope(name).own(nominal)

    def own(self, nominal: int) -> Width:
        """Return the output width of this block itself, which is a convolution."""
        self._unused.discard(self._path)
        return Width(nominal, self._table.get(self._path, nominal))

    @property
    def unused(self) -> tuple[str, ...]:
        """Module paths in the table that no convolution has looked up yet."""
        return tuple(sorted(self._unused))
