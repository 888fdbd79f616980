"""The numbers of a network without some of its channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channel_ids import BoolArray, IntArray
from pruning.graph import ChannelGraph
from pruning.groups import LayerChannels
from pruning.layer_rules import CONV, DEPTHWISE, LINEAR
from utils.twins import tensors_by_name

_PER_OUTPUT = ("weight", "bias", "running_mean", "running_var")


def stays_by_id(graph: ChannelGraph, dropped: IntArray) -> BoolArray:
    """For each id up to the largest, whether it is not among those dropped (n,)."""
    lists = [layer.output_ids for layer in graph.layers.values()] + [
        layer.input_ids for layer in graph.layers.values()
    ]
    largest = max((int(ids.max()) for ids in lists if len(ids)), default=-1)
    stays = np.ones(largest + 1, dtype=bool)
    stays[dropped] = False
    return stays


def kept_tensors(model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> dict[str, Tensor]:
    """Every parameter and buffer of a network, by name, without the channels that do not stay.

    Args:
        model: Not touched; nothing that comes back shares memory with it.
        graph: Its channels.
        stays: By id, whether it is kept (n,).
    """
    own = tensors_by_name(model)
    kept: dict[str, Tensor] = {}
    for layer in graph.layers.values():
        rows = kept_positions(layer.output_ids, stays)
        columns = kept_positions(layer.input_ids, stays) if layer.kind in (CONV, LINEAR) else None
        for suffix in _PER_OUTPUT:
            name = f"{layer.name}.{suffix}"
            if name in own:
                kept[name] = _part(own[name], rows, dim=0)
        if columns is not None:
            kept[f"{layer.name}.weight"] = _part(kept[f"{layer.name}.weight"], columns, dim=1)
    return {name: _fresh(kept.get(name, tensor), tensor) for name, tensor in own.items()}


def kept_positions(ids: IntArray, stays: BoolArray) -> IntArray:
    """Positions of the channels that stay, in order."""
    return np.flatnonzero(stays[ids])


def resize_(model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> None:
    """Make the channel counts of layers those of their tensors, which are cut already."""
    for layer in graph.layers.values():
        module = model.get_submodule(layer.name)
        for name, count in _sizes(layer, stays).items():
            setattr(module, name, count)


def _sizes(layer: LayerChannels, stays: BoolArray) -> dict[str, int]:
    """Attributes of a layer that tell its width, and what they are after a cut."""
    read, made = (len(kept_positions(ids, stays)) for ids in (layer.input_ids, layer.output_ids))
    if layer.is_norm:
        return {"num_features": made}
    if layer.kind == LINEAR:
        return {"in_features": read, "out_features": made}
    channels = {"in_channels": read, "out_channels": made}
    return {**channels, "groups": read} if layer.kind == DEPTHWISE else channels


def _part(tensor: Tensor, positions: IntArray, *, dim: int) -> Tensor:
    """Some of a tensor's slices; the tensor itself where they are all of them."""
    if len(positions) == tensor.shape[dim]:
        return tensor
    return tensor.detach().index_select(dim, torch.from_numpy(positions).to(tensor.device))


def _fresh(kept: Tensor, original: Tensor) -> Tensor:
    """A tensor with memory of its own."""
    return original.detach().clone() if kept is original else kept
