"""Scales as parameters, which train together with the weights.

Esser et al., "Learned Step Size Quantization", ICLR 2020 (arXiv 1902.08153). The parameters are logarithms, as in
Jain et al., "Trained Quantization Thresholds", MLSys 2020 (arXiv 1903.08066): scales stay positive, and an optimiser
whose steps do not depend on the magnitude of a gradient changes large and small ones by the same share. For the same
reason weights train in units of the largest of their channel: norms, which made channels alike, are folded in.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from quantization.program.program import Affine
from quantization.ranges.affine import Grid, fake_quantise


class LearntScales(nn.Module):
    """The scale of every value and of every output channel of the weights; zero points and limits stay as they are.

    Gradients are divided by the square root of the numbers that share a scale, as in LSQ, so that those of scales do
    not outweigh all others when gradients are clipped.

    Attributes:
        values: Logarithm of the scale of each value (N,).
        weights: Logarithm of the scale of each output channel of all weights (M,).
        units: Unit of each output channel of all layers with weights, rounded or not.
    """

    limits: Tensor
    zero_points: Tensor
    units: Tensor

    def __init__(
        self,
        affines: Mapping[str, Affine],
        grids: Mapping[str, Grid],
        *,
        units: Mapping[str, Tensor],
        fixed: Collection[str] = (),
    ) -> None:
        """Begin with given scales.

        Args:
            affines: Scale, zero point and limits of each value, by name of the node.
            grids: Scales and zero points of each weight, by name of the node.
            units: Unit of each output channel (O,) of every weight, by name of the node.
            fixed: Names of values whose scale gets no gradient.
        """
        super().__init__()
        self._places = {name: place for place, name in enumerate(affines)}
        self._grids, self._fixed = dict(grids), frozenset(fixed)
        self._grid_places = _slices({name: len(grid.scales) for name, grid in grids.items()})
        self._unit_places = _slices({name: len(values) for name, values in units.items()})
        scales = torch.tensor([affine.scale for affine in affines.values()], dtype=torch.float64)
        self.values = nn.Parameter(scales.log().float())
        weights = [grid.scales.double().log() for grid in grids.values()]
        self.weights = nn.Parameter(torch.cat(weights).float() if weights else torch.zeros(0))
        self.register_buffer("units", torch.cat(list(units.values())) if units else torch.zeros(0))
        limits = [(affine.low, affine.zero_point, affine.high) for affine in affines.values()]
        self.register_buffer("limits", torch.tensor(limits, dtype=torch.int64).view(-1, 3))
        zero_points = [grid.zero_points.double() for grid in grids.values()]
        self.register_buffer("zero_points", torch.cat(zero_points) if zero_points else torch.zeros(0))
        # Plain numbers: reading a tensor of a GPU would wait for it at every step.
        self._limits = limits
        self.register_load_state_dict_post_hook(_read_limits)  # type: ignore[no-untyped-call]

    def rounded(self, name: str, value: Tensor) -> Tensor:
        """Round a value (any shape) with the scale of a node, which gets a gradient."""
        if name not in self._places:
            return value
        low, zero_point, high = self._limits[self._places[name]]
        share = 1 / math.sqrt(max(value.numel() / len(value) * max(high - zero_point, 1), 1.0))
        scale = _slowed(self.values[self._places[name]], 0.0 if name in self._fixed else share).exp()
        affine = Affine(scale=1.0, zero_point=zero_point, low=low, high=high)
        return fake_quantise(value.float(), affine, scale=scale)

    def scale(self, name: str) -> Tensor | None:
        """Return the scale of a value without a gradient; None where it is not rounded."""
        return self.values[self._places[name]].detach().exp() if name in self._places else None

    def grid(self, name: str, *, inputs: int = 1) -> Grid | None:
        """Return the scales of a weight, which get a gradient; None where it is not rounded.

        Args:
            name: Name of the node.
            inputs: Number of weights that share a scale.
        """
        if name not in self._grids:
            return None
        grid, place = self._grids[name], self._grid_places[name]
        scales = _slowed(self.weights[place], 1 / math.sqrt(inputs * max(grid.high, 1))).double().exp()
        return Grid(scales=scales, zero_points=self.zero_points[place], low=grid.low, high=grid.high)

    def unit(self, name: str, weight: Tensor) -> Tensor:
        """Return the units of a weight (O, ...), in a shape to multiply it by."""
        return self.units[self._unit_places[name]].view(-1, *(1 for _ in weight.shape[1:]))

    @torch.no_grad()
    def settled(self) -> tuple[dict[str, Affine], dict[str, Grid]]:
        """Return scales as they are now, by name of the node: those of values, and those of weights."""
        affines = {}
        for (name, place), scale in zip(self._places.items(), self.values.double().exp().tolist(), strict=True):
            low, zero_point, high = self._limits[place]
            affines[name] = Affine(scale=scale, zero_point=zero_point, low=low, high=high)
        grids = {name: self.grid(name) for name in self._grids}
        return affines, {name: grid for name, grid in grids.items() if grid is not None}


def _slices(lengths: Mapping[str, int]) -> dict[str, slice]:
    """Return where the numbers of each node are, one node after the other."""
    ends = list(accumulate(lengths.values(), initial=0))
    return {name: slice(*ends_of) for name, ends_of in zip(lengths, pairwise(ends), strict=True)}


def _read_limits(module: nn.Module, keys: Any) -> None:
    assert isinstance(module, LearntScales)
    module._limits = [(int(low), int(zero), int(high)) for low, zero, high in module.limits.tolist()]


def _slowed(x: Tensor, share: float) -> Tensor:
    """Return the same numbers with a gradient that is multiplied by a share."""
    return x * share + (x - x * share).detach()
