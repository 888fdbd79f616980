"""Measure how much the filters of a layer overlap, and draw filters that overlap with none.

Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019 (arXiv 1811.07275).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def overlap(filters: Tensor) -> Tensor:
    """Measure how far each filter of a layer is from being orthogonal to the others: high for a redundant one.

    With the rows of W normalised, P = |W W^T - I| and the overlap is the row sum of P over the number of filters.

    Args:
        filters: Filters of the layer (n, weights).

    Returns:
        Overlap of each filter (n,), in [0, 1], float64.
    """
    rows = filters.double()
    rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    overlaps: Tensor = (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs()
    return overlaps.sum(1) / len(rows)


def new_filters(surviving: Tensor, dropped: Tensor, *, generator: np.random.Generator) -> tuple[Tensor, int]:
    """Draw filters to replace dropped ones: orthogonal to the surviving, to the dropped and to each other.

    If the filters leave too few free directions, as many as possible are orthogonal, first in order, and the others
    are random directions. All have the mean norm of the surviving ones.
    The paper takes the null space from a QR decomposition; ours draws at random and subtracts the part within the
    range, which gives the same space at a fraction of the cost.

    Args:
        surviving: Filters that were kept (s, weights), at least one.
        dropped: Dropped filters before they were dropped (n, weights).
        generator: Generator that the directions are drawn from.

    Returns:
        New filters (n, weights) on the CPU, float64, and how many of them, from the first, are orthogonal.
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
    """Return orthonormal columns (weights, rank) that span the rows (n, weights); rows may be zero or alike."""
    units = nn.functional.normalize(rows)
    values, directions = torch.linalg.svd(units, full_matrices=False)[1:]
    smallest = max(units.shape) * torch.finfo(units.dtype).eps * values[0]
    basis: Tensor = directions[values > smallest].T
    return basis
