"""The oracle of channel graphs: where all that makes a channel is zero, it does not matter what reads it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray


def lively(model: nn.Module) -> nn.Module:
    """A float64 copy in evaluation mode whose signals neither vanish nor explode with depth."""
    model = copy.deepcopy(model).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0.0, 0.3)
    return model


def some_ids(graph: ChannelGraph, *, seed: int, share: float = 0.3) -> IntArray:
    """At least one id that may be dropped."""
    ids = graph.prunable_ids
    return np.random.default_rng(seed).choice(ids, max(1, int(share * len(ids))), replace=False)


def deviation(
    model: nn.Module, graph: ChannelGraph, images: Tensor, dropped: IntArray, *, may_be_silent: bool = False
) -> float:
    """By how much the outputs of the masked network change with what reads the masked channels, relative to them.

    Raises:
        AssertionError: Masking itself changes nothing, so that the test would prove nothing; unless
            `may_be_silent`, for channels that nobody reads.
    """
    model = lively(model)
    dense = outputs(model, images)
    silence_(model, graph, dropped)
    masked = outputs(model, images)
    assert torch.isfinite(masked).all()
    assert may_be_silent or not torch.allclose(dense, masked, rtol=1e-9, atol=0), (
        "masking these channels changes nothing"
    )
    _scramble_(model, graph, dropped)
    return float((outputs(model, images) - masked).abs().max() / masked.abs().max().clamp(min=1e-3))


def silence_(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> None:
    """Zero everything that makes or shifts the dropped channels."""
    for layer in graph.layers.values():
        module: Any = model.get_submodule(layer.name)
        rows = torch.from_numpy(np.isin(layer.output_ids, dropped))
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                tensor.data[rows] = 0


def _scramble_(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> None:
    """Replace every weight that reads a dropped channel."""
    for layer in graph.layers.values():
        if layer.kind in ("conv", "linear"):
            weight: Any = model.get_submodule(layer.name).weight
            columns = torch.from_numpy(np.isin(layer.input_ids, dropped))
            weight.data[:, columns] = 10 * torch.randn_like(weight.data[:, columns])


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """All outputs in one vector."""
    return torch.cat([tensor.flatten() for tensor in _tensors(model(images))])


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from _tensors(item)
