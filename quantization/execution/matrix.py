"""Multiply integer matrices exactly in torch, as fast as the machine allows.

`torch._int_mm` multiplies 8-bit integers into 32 bits several times faster than floats are multiplied. Wider
integers are split into 8-bit digits, which are multiplied one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

# Sums of this many products of 8-bit integers fit in 32 bits.
_MOST_TERMS = 2**31 // (128 * 128) - 1
_HALF = 128


def digits(values: Tensor, count: int) -> list[Tensor]:
    """Split integers into `count` int8 digits in [-128, 127], lowest first: value = sum of digit * 256^i.

    Args:
        values: Integers of any type with more than 8 bits.
        count: Number of digits, enough for all values: one covers [-128, 127], two cover [-32896, 32639].
    """
    found = []
    for _ in range(count):
        digit = ((values + _HALF) & 255) - _HALF
        found.append(digit.to(torch.int8))
        values = (values - digit) >> 8
    return found


def num_digits(values: Tensor) -> int:
    """Return the number of digits that integers need, at least one."""
    low, high = (int(end) for end in torch.aminmax(values))
    count, largest = 1, 127
    while high > largest or low < -largest - _span(count):
        count += 1
        largest = largest * 256 + 127
    return count


def _span(count: int) -> int:
    """Return how much further `count` digits reach below zero than above: 1, 257, ..."""
    return sum(256**position for position in range(count))


class ConstantMatrix:
    """A constant left factor of many matrix products.

    Args:
        matrix: Integers (O, K), int64.
    """

    def __init__(self, matrix: Tensor) -> None:
        self.row_sums = matrix.sum(1)
        self._matrix = matrix
        self._is_fast = matrix.shape[1] <= _MOST_TERMS and _int_mm_is_exact()
        self._digits = [digit.contiguous() for digit in digits(matrix, num_digits(matrix))]

    def times(self, right: Sequence[Tensor]) -> Tensor:
        """Multiply with a matrix given as digits, each (K, N), int8.

        Returns:
            Product (O, N), int32 or int64.
        """
        if not self._is_fast:
            return self._matrix @ _joined(right)
        if len(right) == len(self._digits) == 1:
            return torch._int_mm(self._digits[0], right[0])
        total = torch.zeros(len(self._matrix), right[0].shape[1], dtype=torch.int64)
        for i, left_digit in enumerate(self._digits):
            for j, right_digit in enumerate(right):
                total.add_(torch._int_mm(left_digit, right_digit), alpha=256 ** (i + j))
        return total


def _joined(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].long()
    for position, part in enumerate(parts[1:], 1):
        total = total.add_(part.long(), alpha=256**position)
    return total


@cache
def _int_mm_is_exact() -> bool:
    """Check that torch has `_int_mm` and that it does not saturate on this machine, as on old CPUs."""
    if not hasattr(torch, "_int_mm"):
        return False
    left = torch.full((32, 64), -128, dtype=torch.int8)
    left[1::2] = 127
    right = left.t().contiguous()
    return torch.equal(torch._int_mm(left, right).long(), left.long() @ right.long())
