"""How the executor holds tensors of integers.

The channels come first, then the batch: (C, B, H, W) or (C, B). A convolution is then one matrix product for all
images, and factors of channels go along the slow dimension. Integers of up to 8 bits are held in int8, shifted by an
offset; wider ones in int32, counted from the lowest.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from quantization.program import Affine

# One number, or one for each channel, in the first dimension.
Factor: TypeAlias = Tensor | int


def is_narrow(affine: Affine) -> bool:
    """Whether int8 holds it."""
    return affine.high - affine.low < 256


def offset_of(affine: Affine) -> int:
    """What is taken from integers before they are held."""
    return affine.low + 128 if is_narrow(affine) else affine.low


def dtype_of(affine: Affine) -> torch.dtype:
    """In which they are held."""
    return torch.int8 if is_narrow(affine) else torch.int32


def stored(integers: Tensor, affine: Affine) -> Tensor:
    """Integers of any type as they are held; clamped, for what comes from outside may be anything."""
    clamped = integers.clamp(affine.low, affine.high)
    return (clamped - offset_of(affine)).to(dtype_of(affine))


def restored(values: Tensor, affine: Affine) -> Tensor:
    """int32 integers from what is held."""
    return values.to(torch.int32) + offset_of(affine)


def rescaled_(total: Tensor, multiplier: Factor, addend: Factor, shift: Factor, out: Affine) -> Tensor:
    """clamp(Z + ((total * multiplier + addend) >> shift)), as it is held.

    Args:
        total: int64; overwritten.
        multiplier, addend, shift: Whole numbers.
        out: How the result is held and clamped.
    """
    offset = offset_of(out)
    total.mul_(multiplier).add_(addend).bitwise_right_shift_(shift).add_(out.zero_point - offset)
    return total.clamp_(out.low - offset, out.high - offset).to(dtype_of(out))
