"""What the inputs of a layer have in common, and the weights that follow; sources in `quantization.compensation`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from quantization.affine import Grid, fake_weight

# Added to the diagonal of the second moments, as a share of its mean: GPTQ's.
_DAMPING = 0.01


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Products of all pairs of a layer's inputs, summed over rows, (K, K) float64 with a damped diagonal.

    Attributes:
        rounded: Of the rounded inputs with themselves.
        mixed: Of the real inputs with the rounded ones.
    """

    rounded: Tensor
    mixed: Tensor

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Tensor]], weight: Tensor) -> Moments:
        """From pairs of rows (N, K), real and rounded, for a weight (O, ...) of K inputs."""
        num_inputs = weight[0].numel()
        rounded, mixed = (
            torch.zeros(num_inputs, num_inputs, dtype=torch.float64, device=weight.device) for _ in range(2)
        )
        for real_rows, rounded_rows in blocks:
            rows = rounded_rows.double()
            rounded.addmm_(rows.t(), rows)
            mixed.addmm_(real_rows.double().t(), rows)
        level = float(rounded.diagonal().mean()) * _DAMPING
        # Inputs that are always zero say nothing of their weights, whatever the level.
        for moments in (rounded, mixed):
            moments.diagonal().add_(level if level > 0 else 1.0)
        return cls(rounded=rounded, mixed=mixed)

    def standing_in(self, weight: Tensor) -> Tensor:
        """The weights (O, ...) float64 that give of rounded inputs most nearly what `weight` gives of real ones."""
        wanted = weight.flatten(1) @ self.mixed
        return torch.cholesky_solve(wanted.t(), torch.linalg.cholesky(self.rounded)).t().reshape(weight.shape)

    def rounded_weight(self, weight: Tensor, grid: Grid, *, is_zero: Tensor) -> Tensor:
        """Weights on their grid, such that what they give of rounded inputs changes least.

        Args:
            weight: (O, ...) float64.
            grid: What they are rounded to.
            is_zero: (O, ...), which of them become 0 whatever they are.
        """
        # With the inverse's upper Cholesky factor U, row i of U / U[i, i] says how later inputs stand in for input i.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.rounded))
        factor = torch.linalg.cholesky(inverse, upper=True)
        remaining, is_kept_zero = weight.flatten(1).clone(), is_zero.flatten(1)
        result = torch.zeros_like(remaining)
        for index in range(remaining.shape[1]):
            column = remaining[:, index]
            rounded = fake_weight(column, grid)
            result[:, index] = torch.where(is_kept_zero[:, index], 0.0, rounded)
            error = (column - result[:, index]) / factor[index, index]
            remaining[:, index + 1 :] -= error[:, None] * factor[index, index + 1 :]
        return result.view(weight.shape)
