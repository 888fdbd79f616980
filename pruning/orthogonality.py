"""How much filters of a layer overlap, and filters that overlap with none.

Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019 (arXiv 1811.07275).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def overlap(filters: Tensor) -> Tensor:
    """How far each filter of a layer is from being orthogonal to the others: high for one that says nothing new.

    With the rows of W normalised, P = |W W^T - I| and the overlap is the row sum of P over the number of filters.

    Args:
        filters: (n, weights).

    Returns:
        (n,), in [0, 1], float64.
    """
    rows = filters.double()
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    overlaps: Tensor = (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs()
    return overlaps.sum(1) / len(rows)


def new_filters(surviving: Tensor, dropped: Tensor, *, generator: np.random.Generator) -> tuple[Tensor, int]:
    """Filters in the place of dropped ones: orthogonal to the surviving, to the dropped and to each other.

    A layer whose filters span all directions has no room for that: then the first of them are orthogonal, as many as
    there is room for, and the others are random directions. All have the mean norm of the surviving ones.
    The paper takes the null space from a QR decomposition; ours draws at random and subtracts what lies in the range,
    which is the same space at a fraction of the cost.

    Args:
        surviving: (s, weights), at least one.
        dropped: (n, weights), as they were before they were dropped.
        generator: Draws the directions.

    Returns:
        (n, weights) on the CPU, float64, and how many of them, from the first, are orthogonal.
    """
    surviving, dropped = surviving.cpu().double(), dropped.cpu().double()
    count, size = dropped.shape
    basis = _basis(torch.cat((surviving, dropped)))
    num_orthogonal = min(count, size - basis.shape[1])
    made = torch.from_numpy(generator.standard_normal((count, size)))
    if num_orthogonal:
        free = made[:num_orthogonal].T
        for _ in range(2):  # once leaves rounding errors as large as what was subtracted
            free = free - basis @ (basis.T @ free)
        made[:num_orthogonal] = torch.linalg.qr(free).Q.T
    norms = torch.linalg.vector_norm(made, dim=1, keepdim=True)
    return made / norms * torch.linalg.vector_norm(surviving, dim=1).mean(), num_orthogonal


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal columns (weights, rank) that span the rows (n, weights), of which some may be zero or alike."""
    units = nn.functional.normalize(rows)
    values, directions = torch.linalg.svd(units, full_matrices=False)[1:]
    smallest = max(units.shape) * torch.finfo(units.dtype).eps * values[0]
    basis: Tensor = directions[values > smallest].T
    return basis
