"""Results of nodes for many images, held in a fraction of the bytes of real numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from quantization.affine import quantise
from quantization.program import Affine

# Two bytes hold 16 bits around zero.
_HALF = 2**15
# Held reals are below 2 to this: less than the largest of float16, with digits for what is a million times smaller.
_MAGNITUDE = 10
# Of the scale of held reals, which float32 has room for.
_LEAST_EXPONENT = -100


class _HeldParts(ABC):
    """Results of nodes, in parts of the images.

    Args:
        dtype: Of the numbers that are given back.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._parts: dict[str, list[Tensor]] = {}

    @abstractmethod
    def part(self, name: str, index: int) -> Tensor:
        """What was held of one part, as real numbers."""

    def parts(self, name: str) -> Iterator[Tensor]:
        """All of them, one at a time."""
        return (self.part(name, index) for index in range(len(self._parts[name])))

    def keep_only(self, names: Collection[str]) -> None:
        """Let go of all other nodes."""
        self._parts = {name: parts for name, parts in self._parts.items() if name in names}


class HeldValues(_HeldParts):
    """Results in fake mode: as their integers, of one byte or two."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self._affines: dict[str, Affine] = {}

    def add(self, name: str, value: Tensor, affine: Affine) -> None:
        """Hold what a node gives for the next part of the images, rounded to `affine`."""
        self._affines[name] = affine
        integers = quantise(value, affine) - affine.low
        packed = integers.byte() if _is_of_a_byte(affine) else (integers - _HALF).short()
        self._parts.setdefault(name, []).append(packed)

    def part(self, name: str, index: int) -> Tensor:
        """What was held of one part, as real numbers."""
        affine = self._affines[name]
        lowest = affine.low if _is_of_a_byte(affine) else affine.low + _HALF
        return (self._parts[name][index].to(self._dtype) + (lowest - affine.zero_point)) * affine.scale


class HeldReals(_HeldParts):
    """Results in real numbers: in two bytes, to a thousandth of each number.

    Numbers below a millionth of the largest of their part are held more coarsely.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self._exponents: dict[str, list[int]] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Hold what a node gives for the next part of the images."""
        # A power of two changes no digit, and what is far from 1 keeps its digits, too.
        exponent = max(math.frexp(float(value.abs().max()))[1] - _MAGNITUDE, _LEAST_EXPONENT)
        self._exponents.setdefault(name, []).append(exponent)
        self._parts.setdefault(name, []).append((value * 2.0**-exponent).half())

    def part(self, name: str, index: int) -> Tensor:
        """What was held of one part, as real numbers."""
        return self._parts[name][index].to(self._dtype) * 2.0 ** self._exponents[name][index]


def _is_of_a_byte(affine: Affine) -> bool:
    return affine.high - affine.low < 256
