"""The oracle of cuts for any operator: a network in which the weights that read the dropped channels are zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from models.copies import twin_that_shares
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray


def deaf_to(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> nn.Module:
    """A copy whose layers hear nothing of the dropped channels, which carry on whatever they carry."""
    deaf = twin_that_shares(model)
    for layer in graph.layers.values():
        if layer.kind in ("conv", "linear", "transposed"):
            module: Any = deaf.get_submodule(layer.name)
            weight = module.weight.detach().clone()
            read = torch.from_numpy(np.isin(layer.input_ids, dropped))
            weight.movedim(0 if layer.kind == "transposed" else 1, 0)[read] = 0
            module.weight = nn.Parameter(weight)
    return deaf
