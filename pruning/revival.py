"""Dropped filters made anew, orthogonal to those that stayed and to what they were."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channel_ids import IntArray
from pruning.orthogonality import new_filters
from pruning.ranked_filters import RankedLayer, weight_of

# Of a batch norm that returns: the mean of the other channels of its layer for what multiplies and divides, since the
# new filters have the mean norm of the others, and 1, as in a new one, where no other stayed; nothing for what adds.
_FROM_OTHERS = ("weight", "running_var")


@torch.no_grad()
def revive_(
    model: nn.Module, layer: RankedLayer, rows: IntArray, dropped: Tensor, *, generator: np.random.Generator
) -> int:
    """Give filters of a layer that are zero new values, with those of their batch norms.

    Args:
        model: Changed.
        layer: The layer.
        rows: Its filters that are off (n,).
        dropped: (n, weights), what they were.
        generator: Draws directions.

    Returns:
        How many of the new filters are orthogonal to all others of the layer and to the dropped ones.
    """
    weight = weight_of(model, layer.name)
    others = torch.from_numpy(np.setdiff1d(np.arange(len(weight)), rows)).to(weight.device)
    made, num_orthogonal = new_filters(weight[others].flatten(1), dropped, generator=generator)
    weight[torch.from_numpy(rows).to(weight.device)] = made.view(-1, *weight.shape[1:]).to(weight)
    for name, sources in layer.norms.items():
        norm = model.get_submodule(name)
        is_back = np.isin(sources, rows)
        back, stayed = (torch.from_numpy(np.flatnonzero(mask)) for mask in (is_back, (sources >= 0) & ~is_back))
        for key in _FROM_OTHERS:
            values = getattr(norm, key)
            if values is not None:
                values[back.to(values.device)] = values[stayed.to(values.device)].mean() if len(stayed) else 1.0
    return num_orthogonal
