"""Store results of nodes for many images in a fraction of the bytes of float32."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from quantization.program.program import Affine
from quantization.ranges.affine import quantise

# Offset that centres 16-bit integers around zero, to fit in two bytes.
_HALF = 2**15
# Stored reals are below 2 to this power: within float16, with precision left for values a million times smaller.
_MAGNITUDE = 10
# Least exponent of the scale of stored reals, within the range of float32.
_LEAST_EXPONENT = -100


class HeldParts(ABC):
    """Results of nodes, stored for parts of the images.

    Args:
        dtype: Type of the values that are returned.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._parts: dict[str, list[Tensor]] = {}

    @abstractmethod
    def add(self, name: str, value: Tensor) -> None:
        """Store the result of a node for the next part of the images."""

    @abstractmethod
    def part(self, name: str, index: int) -> Tensor:
        """Return the result of a node for one part, as real values."""

    def parts(self, name: str) -> Iterator[Tensor]:
        """Yield the results of a node for all parts, one at a time."""
        return (self.part(name, index) for index in range(len(self._parts[name])))

    def keep_only(self, names: Collection[str]) -> None:
        """Drop the results of all other nodes."""
        self._parts = {name: parts for name, parts in self._parts.items() if name in names}


class HeldValues(HeldParts):
    """Results in fake mode, stored as their integers in one or two bytes.

    Args:
        dtype: Type of the values that are returned.
        affine_of: Function from the name of a node to the scale and zero point of its result.
    """

    def __init__(self, dtype: torch.dtype, affine_of: Callable[[str], Affine | None]) -> None:
        super().__init__(dtype)
        self._affine_of = affine_of
        self._affines: dict[str, Affine] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Store the result of a node for the next part of the images, as its integers."""
        affine = self._affine_of(name)
        assert affine is not None, f"{name} stays in real numbers"
        self._affines[name] = affine
        integers = quantise(value, affine) - affine.low
        packed = integers.byte() if _is_of_a_byte(affine) else (integers - _HALF).short()
        self._parts.setdefault(name, []).append(packed)

    def part(self, name: str, index: int) -> Tensor:
        """Return the result of a node for one part, as real values."""
        affine = self._affines[name]
        lowest = affine.low if _is_of_a_byte(affine) else affine.low + _HALF
        return (self._parts[name][index].to(self._dtype) + (lowest - affine.zero_point)) * affine.scale


class HeldReals(HeldParts):
    """Results in floating point, stored in two bytes to within a thousandth of each value.

    Values below a millionth of the largest of their part are stored less precisely.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self._exponents: dict[str, list[int]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Store the result of a node for the next part of the images."""
        # Scaling by a power of two is exact, and preserves the precision of values far from 1.
        exponent = max(math.frexp(float(value.abs().max()))[1] - _MAGNITUDE, _LEAST_EXPONENT)
        self._exponents.setdefault(name, []).append(exponent)
        self._parts.setdefault(name, []).append((value * 2.0**-exponent).half())

    def part(self, name: str, index: int) -> Tensor:
        """Return the result of a node for one part, as real values."""
        return self._parts[name][index].to(self._dtype) * 2.0 ** self._exponents[name][index]


def _is_of_a_byte(affine: Affine) -> bool:
    return affine.high - affine.low < 256
