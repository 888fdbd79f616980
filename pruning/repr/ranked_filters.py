"""Filters that RePr may drop, the batch-norm channels that belong to each, and the filters that overlap most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.channels.layer_rules import BATCH_NORM, CONV, DEPTHWISE, GROUPED
from pruning.importance.criteria import check_finite, num_ids
from pruning.repr.orthogonality import overlap
from utils.errors import PruningError

# Sorted filter indices (n,), by path of the layer.
Rows = Mapping[str, IntArray]


@dataclass(frozen=True, kw_only=True)
class RankedLayer:
    """A convolution whose filters can be dropped.

    Attributes:
        name: Module path.
        rows: Indices of the filters that may be dropped (n,).
        norms: Index of the filter that each batch-norm channel belongs to, or -1 (C,), by path of each batch norm
            that scales channels which only this layer produces.
    """

    name: str
    rows: IntArray
    norms: Mapping[str, IntArray]


def ranked_layers(model: nn.Module, graph: ChannelGraph) -> tuple[RankedLayer, ...]:
    """List the convolutions that train, except the first, depthwise ones, and those that produce the output.

    Raises:
        PruningError: No convolution is left.
    """
    convolutions = [layer for layer in graph.layers.values() if layer.kind == CONV]
    norms = _norms_by_maker(graph)
    found = []
    for layer in convolutions[1:]:
        rows = np.flatnonzero(graph.is_prunable(layer.output_ids))
        if len(rows) and weight_of(model, layer.name).requires_grad:
            found.append(RankedLayer(name=layer.name, rows=rows, norms=norms[layer.name]))
    if not found:
        raise PruningError(
            f"{type(model).__name__} has no convolution whose filters RePr may drop, beside its first and those "
            "that produce its output; give a deeper network or train without RePr"
        )
    return tuple(found)


def weight_of(model: nn.Module, layer: str) -> nn.Parameter:
    """Return the filters of a convolution (C_out, C_in, kh, kw)."""
    return model.get_parameter(f"{layer}.weight")


def most_overlapping(model: nn.Module, layers: Sequence[RankedLayer], *, count: int) -> Rows:
    """Find the `count` filters of the network with the highest overlap; every layer keeps at least its best one.

    Args:
        model: Network with its current weights.
        layers: Layers to search.
        count: Number of filters; fewer are returned if layers would be left without any.

    Raises:
        PruningError: A weight is NaN or infinite.
    """
    scores = {layer.name: overlap(weight_of(model, layer.name).detach().flatten(1)).cpu().numpy() for layer in layers}
    check_finite(scores, what="weights", remedy="start from an undamaged checkpoint or train with a lower rate")
    places = [(layer.name, row) for layer in layers for row in _all_but_the_best(layer, scores[layer.name]).tolist()]
    overlaps = np.array([scores[name][row] for name, row in places])
    worst = np.argsort(-overlaps, kind="stable")[:count]
    chosen: dict[str, list[int]] = {}
    for name, row in (places[place] for place in np.sort(worst)):
        chosen.setdefault(name, []).append(row)
    return {name: np.array(rows, dtype=np.int64) for name, rows in chosen.items()}


def zeros_of(model: nn.Module, layers: Sequence[RankedLayer], rows: Rows) -> dict[str, Tensor]:
    """Mark what is zero while filters are off: weights, biases, and all batch-norm values of their channels.

    Args:
        model: Network of the layers.
        layers: Layers, including at least those in `rows`.
        rows: Filters that are off.

    Returns:
        Bool masks by name of the parameter or buffer: of its shape, or (C, 1, ...) for one value per filter.
    """
    zeros: dict[str, Tensor] = {}
    for layer in layers:
        if layer.name not in rows:
            continue
        weight = weight_of(model, layer.name)
        is_off = torch.zeros(len(weight), dtype=torch.bool)
        is_off[torch.from_numpy(rows[layer.name])] = True
        zeros[f"{layer.name}.weight"] = is_off.view(-1, *[1] * (weight.ndim - 1))
        if model.get_submodule(layer.name).bias is not None:
            zeros[f"{layer.name}.bias"] = is_off
        for norm, sources in layer.norms.items():
            channels = torch.from_numpy(np.isin(sources, rows[layer.name]))
            for name in _values_per_channel(model.get_submodule(norm)):
                key = f"{norm}.{name}"
                zeros[key] = zeros[key] | channels if key in zeros else channels
    return zeros


def _values_per_channel(norm: nn.Module) -> list[str]:
    """List the names of a batch norm's parameters and buffers that have a value per channel."""
    tensors = {**dict(norm.named_parameters(recurse=False)), **dict(norm.named_buffers(recurse=False))}
    return [name for name, tensor in tensors.items() if tensor.ndim]


def _norms_by_maker(graph: ChannelGraph) -> dict[str, dict[str, IntArray]]:
    """Find the batch norms of `RankedLayer.norms` for each layer that produces channels.

    A batch norm scales channels of one layer alone if no other layer produces them, as after a concat, or if it
    stands between the layer and the addition that joins them to others.
    """
    makers = [layer for layer in graph.layers.values() if layer.kind not in (BATCH_NORM, DEPTHWISE, GROUPED)]
    owner, row = np.full((2, num_ids(graph)), -1)
    times_made = np.zeros(num_ids(graph), dtype=np.int64)
    for place, layer in enumerate(makers):
        owner[layer.output_ids], row[layer.output_ids] = place, np.arange(len(layer.output_ids))
        # An id that stands for several filters, as of a group of a convolution, says nothing about one of them.
        np.add.at(times_made, layer.output_ids, 1)
    found: dict[str, dict[str, IntArray]] = {layer.name: {} for layer in makers}
    for norm in (layer for layer in graph.layers.values() if layer.is_norm):
        owners = np.where(times_made[norm.output_ids] == 1, owner[norm.output_ids], -1)
        for place in np.unique(owners[owners >= 0]).tolist():
            sources = np.where(owners == place, row[norm.output_ids], -1)
            found[makers[place].name][norm.name] = sources
    for name, norms in graph.norms_after.items():
        found[name] |= {norm.name: norm.sources for norm in norms}
    return found


def _all_but_the_best(layer: RankedLayer, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> IntArray:
    """Return the filters that may be dropped, except the one of least overlap if the layer would be left empty."""
    if len(layer.rows) < len(scores):
        return layer.rows
    return np.delete(layer.rows, int(np.argmin(scores[layer.rows])))
