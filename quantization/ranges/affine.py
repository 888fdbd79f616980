"""Map real values to integers: ranges, rounding, and rounding that gradients pass through.

Halves are rounded up everywhere, as by `rescale` in `quantization.program.program`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantization.program.program import Affine
from quantization.ranges.config import QuantConfig

# A smaller range contains only zeros, apart from rounding; its scale could overflow.
_NO_RANGE = 1e-30

Number = float | Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Scales and zero points of a weight, per output channel.

    Attributes:
        scales: Scale of each channel (O,), float64; of a layer positive, of a use of it with the sign of its gain.
        zero_points: Zero point of each channel (O,), float64, whole.
        low, high: Smallest and largest integer allowed.
    """

    scales: Tensor
    zero_points: Tensor
    low: int
    high: int


def integer_limits(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """Return the smallest and largest integer: unsigned, or signed and symmetric around zero."""
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        return -largest, largest
    return 0, 2**bits - 1


def affine_of_range(low: float, high: float, *, bits: int, symmetric: bool, signed: bool = False) -> Affine:
    """Compute S = (high - low) / (2^bits - 1) and Z = round(-low / S) for a range widened to include zero.

    A symmetric range without negative values uses all integers for the positive ones: its Z is 0 as well.

    Args:
        low, high: Ends of the real range; a range of only zero gets the scale 1.
        bits: Number of bits, 2 to 16.
        symmetric: Whether Z must be 0.
        signed: Whether symmetric integers are signed even without negative values.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    is_signed = symmetric and (signed or low < 0)
    smallest, largest = integer_limits(bits, symmetric=is_signed)
    if is_signed:
        high = max(-low, high)
        low = -high
    if high - low < _NO_RANGE:
        return Affine(scale=1.0, zero_point=0, low=smallest, high=largest)
    scale = (high - low) / (largest - smallest)
    zero_point = 0 if is_signed else min(max(round_half_up(-low / scale), smallest), largest)
    return Affine(scale=scale, zero_point=zero_point, low=smallest, high=largest)


def within(affine: Affine, low: float, high: float) -> Affine:
    """Restrict the integers to the real values from `low` to `high`, which may be infinite; keep the scale.

    Zero must be between them, since convolutions pad with its integer.
    """
    assert low <= 0 <= high, f"a clamp to {low} to {high} leaves no integer of zero"
    lowest, highest = affine.low, affine.high
    if math.isfinite(low):
        lowest = max(lowest, round_half_up(low / affine.scale) + affine.zero_point)
    if math.isfinite(high):
        highest = min(highest, round_half_up(high / affine.scale) + affine.zero_point)
    return replace(affine, low=lowest, high=highest)


def round_half_up(value: float) -> int:
    """Round to the nearest integer, halves up."""
    return math.floor(value + 0.5)


def quantise(x: Tensor, affine: Affine) -> Tensor:
    """Quantise real values to int64 integers, clamped."""
    return _rounded(x, affine.scale, affine.zero_point, affine.low, affine.high).long()


def dequantise(integers: Tensor, affine: Affine) -> Tensor:
    """Convert integers to the float32 values that they represent."""
    return ((integers - affine.zero_point).double() * affine.scale).float()


def fake_quantise(x: Tensor, affine: Affine, *, scale: Tensor | None = None) -> Tensor:
    """Round real values to those that integers represent; gradients pass where nothing was clamped.

    Args:
        x: Values of any shape.
        affine: Scale, zero point and limits of the integers.
        scale: Scale that is learnt (scalar), instead of that of `affine`; it gets a gradient too.
    """
    result: Tensor = _Round.apply(  # type: ignore[no-untyped-call]
        x, affine.scale if scale is None else scale, affine.zero_point, affine.low, affine.high
    )
    return result


def weight_integers(weight: Tensor, grid: Grid) -> Tensor:
    """Quantise weights (O, ...) to integers in float64."""
    scales, zero_points = _along_channels(grid, weight)
    return _rounded(weight.detach().double(), scales, zero_points, grid.low, grid.high)


def fake_weight(weight: Tensor, grid: Grid) -> Tensor:
    """Round weights (O, ...) to those that integers represent; gradients pass where nothing was clamped."""
    scales, zero_points = _along_channels(grid, weight)
    rounded: Tensor = _Round.apply(  # type: ignore[no-untyped-call]
        weight.double(), scales, zero_points, grid.low, grid.high
    )
    return rounded.to(weight.dtype)


def fake_bias(bias: Tensor, scales: Tensor) -> Tensor:
    """Round biases (O,) to multiples of `scales`; gradients pass."""
    rounded: Tensor = _Round.apply(bias.double(), scales, 0, -math.inf, math.inf)  # type: ignore[no-untyped-call]
    return rounded.to(bias.dtype)


def _along_channels(grid: Grid, weight: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *(1 for _ in weight.shape[1:]))  # (O, 1, ...)
    return grid.scales.view(shape), grid.zero_points.view(shape)


def _rounded(x: Tensor, scale: Number, zero_point: Number, low: float, high: float) -> Tensor:
    return (torch.floor(x / scale + 0.5) + zero_point).clamp(low, high)


class _Round(torch.autograd.Function):
    """Rounding with the gradient of a clamp (Bengio et al., arXiv 1308.3432: the straight-through estimator).

    A scale that is a tensor with a gradient gets that of Esser et al., "Learned Step Size Quantization", ICLR 2020
    (arXiv 1902.08153), equation 3: how far rounding moves a value in steps, or the integer to which it is clamped.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Number, zero_point: Number, low: float, high: float) -> Tensor:
        steps = x / scale
        unclamped = torch.floor(steps + 0.5) + zero_point
        clamped = unclamped.clamp(low, high)
        is_inside, whole = unclamped == clamped, clamped - zero_point
        ctx.scale_shape = None
        if ctx.needs_input_grad[1]:
            assert isinstance(scale, Tensor), "numbers have no gradient"
            ctx.scale_shape = scale.shape
            ctx.save_for_backward(is_inside, whole - steps * is_inside)
        else:
            ctx.save_for_backward(is_inside)
        return whole * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        is_inside, *slopes = ctx.saved_tensors
        of_scale = (gradients[0] * slopes[0]).sum_to_size(ctx.scale_shape) if slopes else None
        return gradients[0] * is_inside, of_scale, None, None, None


MOST_SHIFT = 62
LARGEST_MULTIPLIER = 2**31 - 1
# Upper bound of the sum of products.
_LIMIT = 2**62


def fixed_point(real: float, *, bound: int) -> tuple[int, int]:
    """Approximate a factor by M * 2^-k, as exactly as 31 bits and `bound` allow.

    Args:
        real: Factor, not negative.
        bound: Largest magnitude that it is multiplied with.

    Returns:
        M in [0, 2^31) and k in [1, 62], with bound * M + 2^(k-1) below 2^62 + 2^61.
    """
    multipliers, shift = common_fixed_point([real], bounds=[bound])
    return multipliers[0], shift


def common_fixed_point(reals: Sequence[float], *, bounds: Sequence[int]) -> tuple[list[int], int]:
    """Approximate several factors with one shift, as `fixed_point` does; their products are summed.

    Args:
        reals: Factors, not negative.
        bounds: Largest magnitude that each factor is multiplied with.
    """
    for shift in range(MOST_SHIFT, 1, -1):
        # Multiplication by a power of two is exact.
        multipliers = [round_half_up(real * 2**shift) for real in reals]
        total = sum(bound * multiplier for bound, multiplier in zip(bounds, multipliers, strict=True))
        if max(multipliers) <= LARGEST_MULTIPLIER and total < _LIMIT:
            return multipliers, shift
    # Factors this large clamp every value except zero, whatever their exact size.
    return [min(round_half_up(real * 2), LARGEST_MULTIPLIER) for real in reals], 1


# Biases are integers of 32 bits at the scale of input times weight; a quarter of their range is enough.
_MOST_BIAS = 2**30
# Bits up to which a range that cuts off large weights is better than one that has them all.
_FEW_BITS = 4
# Shares of the full range among which "mse" chooses.
_SHARES = torch.linspace(0.2, 1.0, 41, dtype=torch.float64).tolist()


@torch.no_grad()
def weight_grid(weight: Tensor, bias: Tensor, *, bits: int, config: QuantConfig, input_scale: float | None) -> Grid:
    """Compute the scales and zero points of a weight.

    A channel whose bias would not fit in 32 bits gets a larger scale than its weights need; the weights are then far
    smaller than the bias.

    Args:
        weight: Weight (O, ...).
        bias: Bias (O,).
        bits: Number of bits of the weight.
        config: Settings of the kind of range.
        input_scale: Scale of the layer's input; None if the input is not quantised.
    """
    rows = weight.detach().double().reshape(len(weight) if config.per_channel else 1, -1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if config.weight_symmetric:
        high = torch.maximum(high, -low)
        low = -high
    if config.weight_range == "mse" or (config.weight_range == "auto" and bits <= _FEW_BITS):
        low, high = _least_error(rows, low, high, bits, symmetric=config.weight_symmetric)
    least = torch.zeros_like(low)
    if input_scale is not None:
        needed = bias.detach().double().abs() / (input_scale * _MOST_BIAS)
        least = needed if config.per_channel else needed.amax().view(1)
    grid = _grid_of(low, high, bits, symmetric=config.weight_symmetric, least=least)
    return Grid(
        scales=grid.scales.expand(len(weight)),
        zero_points=grid.zero_points.expand(len(weight)),
        low=grid.low,
        high=grid.high,
    )


def _grid_of(low: Tensor, high: Tensor, bits: int, *, symmetric: bool, least: Tensor | None = None) -> Grid:
    smallest, largest = integer_limits(bits, symmetric=symmetric)
    scales = (high - low) / (largest - smallest)
    if least is not None:
        scales = torch.maximum(scales, least)
    scales = torch.where(scales > 0, scales, 1.0)
    zero_points = torch.zeros_like(scales) if symmetric else torch.floor(-low / scales + 0.5)
    return Grid(scales=scales, zero_points=zero_points.clamp(smallest, largest), low=smallest, high=largest)


def _least_error(rows: Tensor, low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Shrink both ends of each row's range by the share with the least squared quantisation error."""
    least = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for share in _SHARES:
        grid = _grid_of(low * share, high * share, bits, symmetric=symmetric)
        scales, zero_points = grid.scales[:, None], grid.zero_points[:, None]
        integers = (torch.floor(rows / scales + 0.5) + zero_points).clamp(grid.low, grid.high)
        error = ((integers - zero_points) * scales - rows).square().sum(1)
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    return low * best, high * best
