"""Storage format of the executor's integer tensors.

The channels come first, then the batch: (C, B, H, W) or (C, B). A convolution is then one matrix product for all
images, and factors per channel vary along the slow dimension. Integers of up to 8 bits are stored in int8, shifted by
an offset; wider ones in int32, counted from the lowest.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from quantization.program.program import Affine

# One value, or one per channel along the first dimension.
Factor: TypeAlias = Tensor | int


def is_narrow(affine: Affine) -> bool:
    """Return whether the integers fit in int8."""
    return affine.high - affine.low < 256


def offset_of(affine: Affine) -> int:
    """Return the offset that is subtracted from integers before they are stored."""
    return affine.low + 128 if is_narrow(affine) else affine.low


def dtype_of(affine: Affine) -> torch.dtype:
    """Return the type in which the integers are stored."""
    return torch.int8 if is_narrow(affine) else torch.int32


def stored(integers: Tensor, affine: Affine) -> Tensor:
    """Convert integers of any type to the storage format, clamped, since input from outside may be out of range."""
    clamped = integers.clamp(affine.low, affine.high)
    return (clamped - offset_of(affine)).to(dtype_of(affine))


def restored(values: Tensor, affine: Affine) -> Tensor:
    """Convert stored values back to int32 integers."""
    return values.to(torch.int32) + offset_of(affine)


def rescaled_(total: Tensor, multiplier: Factor, addend: Factor, shift: Factor, out: Affine) -> Tensor:
    """Compute clamp(Z + ((total * multiplier + addend) >> shift)) in the storage format.

    Args:
        total: Sums, int64; overwritten.
        multiplier, addend, shift: Integers, one or one per channel.
        out: Zero point and limits of the result.
    """
    offset = offset_of(out)
    total.mul_(multiplier).add_(addend).bitwise_right_shift_(shift).add_(out.zero_point - offset)
    return total.clamp_(out.low - offset, out.high - offset).to(dtype_of(out))
