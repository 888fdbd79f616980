"""Real numbers as integers: ranges, rounding, and rounding that gradients pass through.

Everything rounds halves up, as `program.rescale` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from quantization.program import Affine

# Ranges below this are all zeros but for rounding; their scale would only overflow something.
_NO_RANGE = 1e-30

Number = float | Tensor


@dataclass(frozen=True, kw_only=True)
class Grid:
    """How the integers of a weight stand for real numbers, channel by channel.

    Attributes:
        scales: (O,) float64, positive.
        zero_points: (O,) float64, whole.
        low, high: The smallest and largest integer allowed.
    """

    scales: Tensor
    zero_points: Tensor
    low: int
    high: int


def integer_limits(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest integer: unsigned, or signed with as many below zero as above."""
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        return -largest, largest
    return 0, 2**bits - 1


def affine_of_range(low: float, high: float, *, bits: int, symmetric: bool) -> Affine:
    """S = (high - low) / (2^bits - 1) and Z = round(-low / S), for a range widened to hold zero.

    A symmetric range without negative numbers takes all integers for the positive ones: its Z is 0 all the same.

    Args:
        low, high: Of the real numbers; a range of nothing but zero gets the scale 1.
        bits: 2 to 16.
        symmetric: Z is 0.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    is_signed = symmetric and low < 0
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
    """The same scale with fewer integers: those of the real numbers from `low` to `high`, which may be infinite.

    Zero must lie between them: its integer stands for the borders that convolutions pad with.
    """
    assert low <= 0 <= high, f"a clamp to {low} to {high} leaves no integer of zero"
    lowest, highest = affine.low, affine.high
    if math.isfinite(low):
        lowest = max(lowest, round_half_up(low / affine.scale) + affine.zero_point)
    if math.isfinite(high):
        highest = min(highest, round_half_up(high / affine.scale) + affine.zero_point)
    return replace(affine, low=lowest, high=highest)


def round_half_up(value: float) -> int:
    """The nearest whole number, the upper one of two."""
    return math.floor(value + 0.5)


def quantise(x: Tensor, affine: Affine) -> Tensor:
    """Real numbers to int64 integers, clamped."""
    return _rounded(x, affine.scale, affine.zero_point, affine.low, affine.high).long()


def dequantise(integers: Tensor, affine: Affine) -> Tensor:
    """Integers to the float32 numbers they stand for."""
    return ((integers - affine.zero_point).double() * affine.scale).float()


def fake_quantise(x: Tensor, affine: Affine) -> Tensor:
    """Real numbers rounded to those that integers stand for; gradients pass where nothing was clamped."""
    result: Tensor = _Round.apply(  # type: ignore[no-untyped-call]
        x, affine.scale, affine.zero_point, affine.low, affine.high
    )
    return result


def weight_integers(weight: Tensor, grid: Grid) -> Tensor:
    """Weights (O, ...) to whole numbers in float64."""
    scales, zero_points = _along_channels(grid, weight)
    return _rounded(weight.detach().double(), scales, zero_points, grid.low, grid.high)


def fake_weight(weight: Tensor, grid: Grid) -> Tensor:
    """Weights (O, ...) rounded to what their integers stand for; gradients pass where nothing was clamped."""
    scales, zero_points = _along_channels(grid, weight)
    rounded: Tensor = _Round.apply(  # type: ignore[no-untyped-call]
        weight.double(), scales, zero_points, grid.low, grid.high
    )
    return rounded.to(weight.dtype)


def fake_bias(bias: Tensor, scales: Tensor) -> Tensor:
    """Biases (O,) rounded to multiples of `scales`; gradients pass."""
    rounded: Tensor = _Round.apply(bias.double(), scales, 0, -math.inf, math.inf)  # type: ignore[no-untyped-call]
    return rounded.to(bias.dtype)


def _along_channels(grid: Grid, weight: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *(1 for _ in weight.shape[1:]))  # (O, 1, ...)
    return grid.scales.view(shape), grid.zero_points.view(shape)


def _rounded(x: Tensor, scale: Number, zero_point: Number, low: float, high: float) -> Tensor:
    return (torch.floor(x / scale + 0.5) + zero_point).clamp(low, high)


class _Round(torch.autograd.Function):
    """Rounding with the gradient of a clamp (Bengio et al., arXiv 1308.3432: the straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Number, zero_point: Number, low: float, high: float) -> Tensor:
        unclamped = torch.floor(x / scale + 0.5) + zero_point
        clamped = unclamped.clamp(low, high)
        ctx.save_for_backward(unclamped == clamped)
        return (clamped - zero_point) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (is_inside,) = ctx.saved_tensors
        return gradients[0] * is_inside, None, None, None, None
