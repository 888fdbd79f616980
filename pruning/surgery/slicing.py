"""Slice the tensors of a network to its kept channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.copies import tensors_by_name
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import BoolArray, IntArray
from pruning.channels.layer_rules import LINEAR

_PER_OUTPUT = ("weight", "bias", "running_mean", "running_var")


def stays_by_id(graph: ChannelGraph, dropped: IntArray) -> BoolArray:
    """Return a mask over all ids up to the largest, False for the dropped ones (n,)."""
    lists = [ids for layer in graph.layers.values() for ids in (layer.output_ids, layer.input_ids)]
    lists += [channels.ids for channels in graph.stored.values()]
    lists += [ids for part in graph.parts for ids in (part.input_ids, *part.output_ids)]
    largest = max((int(ids.max()) for ids in lists if len(ids)), default=-1)
    stays = np.ones(largest + 1, dtype=bool)
    stays[dropped] = False
    return stays


def kept_tensors(model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> dict[str, Tensor]:
    """Return every parameter and buffer of a network, by name, without the dropped channels.

    Args:
        model: Network; it is not changed, and the returned tensors share no memory with it.
        graph: Channels of the network.
        stays: Mask of the kept channels by id (n,).
    """
    own = tensors_by_name(model)
    # By identity, since a module or tensor may have several names.
    kept: dict[int, Tensor] = {}
    for name, channels in graph.stored.items():
        kept[id(own[name])] = _part(own[name], kept_positions(channels.ids, stays), dim=channels.axis)
    for layer in graph.layers.values():
        rows = kept_positions(layer.output_ids, stays)
        for suffix in _PER_OUTPUT:
            if (name := f"{layer.name}.{suffix}") in own:
                across = layer.weight_axes[0] if suffix == "weight" else 0
                kept[id(own[name])] = _part(own[name], rows, dim=across)
        if layer.reads_all:
            weight = id(own[f"{layer.name}.weight"])
            kept[weight] = _part(kept[weight], kept_positions(layer.input_ids, stays), dim=layer.weight_axes[1])
    fresh = {id(tensor): _fresh(kept.get(id(tensor), tensor), tensor) for tensor in own.values()}
    return {name: fresh[id(tensor)] for name, tensor in own.items()}


def kept_positions(ids: IntArray, stays: BoolArray) -> IntArray:
    """Return the positions of the kept channels, in order."""
    return np.flatnonzero(stays[ids])


def resize_(model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> None:
    """Set the channel counts of layers to match their tensors, which are cut already."""
    for layer in graph.layers.values():
        module = model.get_submodule(layer.name)
        for name, count in _sizes(layer, module, stays).items():
            if hasattr(module, name):
                setattr(module, name, count)
    for name, channels in graph.stored.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.PReLU):
            module.num_parameters = len(kept_positions(channels.ids, stays))


def _sizes(layer: LayerChannels, module: nn.Module, stays: BoolArray) -> dict[str, int]:
    """Return the attributes that give a layer's width, with their values after a cut."""
    read, made = (len(kept_positions(ids, stays)) for ids in (layer.input_ids, layer.output_ids))
    if layer.is_norm:
        return {"num_features": made}
    if layer.kind == LINEAR:
        return {"in_features": read, "out_features": made}
    # A convolution of one group keeps it, however many of its channels are cut.
    groups = 1 if layer.reads_all else int(module.groups) * read // len(layer.input_ids)  # type: ignore[arg-type]
    return {"in_channels": read, "out_channels": made, "groups": groups}


def _part(tensor: Tensor, positions: IntArray, *, dim: int) -> Tensor:
    """Select slices of a tensor along `dim`; return the tensor itself if all are selected."""
    if len(positions) == tensor.shape[dim]:
        return tensor
    return tensor.detach().index_select(dim, torch.from_numpy(positions).to(tensor.device))


def _fresh(kept: Tensor, original: Tensor) -> Tensor:
    """Return a tensor that shares no memory with the original."""
    return original.detach().clone() if kept is original else kept
