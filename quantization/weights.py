"""Scales of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from quantization.affine import Grid, integer_limits
from quantization.config import QuantConfig

# Biases are integers of 32 bits at the scale of input times weight; a quarter of their range is enough.
_MOST_BIAS = 2**30
# Shares of the full range among which "mse" chooses.
_SHARES = torch.linspace(0.2, 1.0, 41, dtype=torch.float64).tolist()


@torch.no_grad()
def weight_grid(weight: Tensor, bias: Tensor, *, bits: int, config: QuantConfig, input_scale: float | None) -> Grid:
    """How a weight becomes integers.

    A channel whose bias would not fit in 32 bits gets a larger scale than its weights need: they are then far
    smaller than what is added to them.

    Args:
        weight: (O, ...).
        bias: (O,).
        bits: Of the weight.
        config: Which kind of ranges.
        input_scale: Of what it is multiplied with; None where that is not quantised.
    """
    rows = weight.detach().double().reshape(len(weight) if config.per_channel else 1, -1)
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    if config.weight_symmetric:
        high = torch.maximum(high, -low)
        low = -high
    if config.weight_range == "mse":
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
    """The shares of both ends that change the numbers of each row least, in squares."""
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
