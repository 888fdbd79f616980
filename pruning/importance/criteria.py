"""Criteria that rate the importance of each channel from the weights alone; higher means keep.

A criterion returns one value per channel id, so a channel that several layers share has one importance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.channels.layer_rules import CONV, DEPTHWISE, GROUPED, LINEAR, TRANSPOSED
from pruning.choices import CriterionName
from utils.errors import PruningError

# Returns, for a network and its graph, the importance of each id (num_ids,); NaN where it cannot be rated.
Criterion = Callable[[nn.Module, ChannelGraph], FloatArray]

CRITERION_NAMES: tuple[str, ...] = get_args(CriterionName)

# Layers whose weights have one filter per output channel.
_FILTERED = (CONV, TRANSPOSED, DEPTHWISE, GROUPED, LINEAR)


def num_ids(graph: ChannelGraph) -> int:
    """Return the length of an array indexed by id: the largest id plus 1."""
    lists = [ids for layer in graph.layers.values() for ids in (layer.input_ids, layer.output_ids)]
    return max((int(ids.max()) for ids in lists if len(ids)), default=-1) + 1


def by_id(graph: ChannelGraph, scores: Mapping[str, FloatArray], *, is_mean: bool = True) -> FloatArray:
    """Combine scores per layer into one score per channel id.

    Args:
        graph: Channel graph of the network.
        scores: Score of each output channel (C_out,), by path of the layer; layers may be missing.
        is_mean: Whether to average over the layers that share a channel, rather than add up.

    Returns:
        Scores (num_ids,), NaN for channels of none of these layers.
    """
    size = num_ids(graph)
    empty = np.empty(0, dtype=np.int64)
    ids = np.concatenate([empty, *(graph.layers[name].output_ids for name in scores)])
    totals = np.bincount(ids, weights=np.concatenate([empty, *scores.values()]), minlength=size)
    counts = np.bincount(ids, minlength=size)
    found = np.full(size, np.nan)
    np.divide(totals, counts if is_mean else 1, out=found, where=counts > 0)
    return found


def bn_gamma(model: nn.Module, graph: ChannelGraph) -> FloatArray:
    """Rate each channel by its mean absolute batch-norm scale over the batch norms it passes.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. The paper scores
    each layer alone; the mean over tied layers is ours, for shortcuts.

    Raises:
        PruningError: No batch norm has scales, or a scale is NaN or infinite.
    """
    modules = dict(model.named_modules())
    gammas = {
        name: modules[name].weight.detach()
        for name, layer in graph.layers.items()
        if layer.is_norm and modules[name].weight is not None
    }
    if not gammas:
        raise PruningError(
            f"{type(model).__name__} has no batch norm to rank by; use another criterion, such as kernel_l1 or taylor"
        )
    # One transfer for all layers, so that a GPU is waited for only once.
    joined = torch.cat([gamma.double() for gamma in gammas.values()]).abs().cpu().numpy()
    ends = np.cumsum([len(gamma) for gamma in gammas.values()])[:-1]
    scores: dict[str, FloatArray] = dict(zip(gammas, np.split(joined, ends), strict=True))
    check_finite(scores, what="batch-norm scales", remedy="train again with a lower --sr or learning rate")
    return by_id(graph, scores)


def kernel_l1(model: nn.Module, graph: ChannelGraph) -> FloatArray:
    """Rate each channel by the sum of the absolute weights of its filter, relative to the mean of the layer.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (arXiv 1608.08710). The paper ranks within layers;
    dividing by the mean makes layers comparable, and tied layers are averaged.

    Raises:
        PruningError: A weight is NaN or infinite.
    """
    return _by_filters(model, graph, lambda filters: torch.linalg.vector_norm(filters, ord=1, dim=1))


def kernel_l2(model: nn.Module, graph: ChannelGraph) -> FloatArray:
    """Rate each channel by the Euclidean norm of its filter, relative to the layer's mean, else as `kernel_l1`.

    Raises:
        PruningError: A weight is NaN or infinite.
    """
    return _by_filters(model, graph, lambda filters: torch.linalg.vector_norm(filters, ord=2, dim=1))


def fpgm(model: nn.Module, graph: ChannelGraph) -> FloatArray:
    """Rate each channel by the summed distances of its filter to the others, relative to the mean of the layer.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019
    (arXiv 1811.00250): a filter in the middle of the others can be replaced by them. The paper ranks within layers;
    the division by the mean, and the mean over tied layers, are ours.

    Raises:
        PruningError: A weight is NaN or infinite.
    """
    return _by_filters(model, graph, _summed_distances)


def random_order(model: nn.Module, graph: ChannelGraph, *, seed: int = 0) -> FloatArray:
    """Draw an importance in [0, 1) for each channel that a layer produces: a baseline, repeatable by its seed."""
    made = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *_filtered_ids(graph).values()]))
    found = np.full(num_ids(graph), np.nan)
    found[made] = np.random.default_rng(seed).random(len(made))
    return found


CRITERIA: dict[str, Criterion] = {
    "bn_gamma": bn_gamma,
    "kernel_l1": kernel_l1,
    "kernel_l2": kernel_l2,
    "fpgm": fpgm,
    "random": random_order,
}


def check_finite(scores: Mapping[str, FloatArray], *, what: str, remedy: str) -> None:
    """Check that the scores of all layers are finite.

    Args:
        scores: Scores of the channels (C,), by path of the layer.
        what: Quantity that the scores were computed from, for the message.
        remedy: Advice to the user, for the message.

    Raises:
        PruningError: A score is NaN or infinite; the message names the first such layer.
    """
    for name, values in scores.items():
        broken = np.flatnonzero(~np.isfinite(values))
        if len(broken):
            raise PruningError(
                f"layer {name}: {what} of {len(broken)} of {len(values)} channels are NaN or infinite "
                f"(first: channel {broken[0]}); {remedy}"
            )


def _filtered_ids(graph: ChannelGraph) -> dict[str, IntArray]:
    """Return the output ids, by path, of the layers that have one filter per output channel."""
    return {name: layer.output_ids for name, layer in graph.layers.items() if layer.kind in _FILTERED}


def _by_filters(model: nn.Module, graph: ChannelGraph, score: Callable[[Tensor], Tensor]) -> FloatArray:
    """Score the filters (C_out, weights), float64, of every layer, relative to the layer's mean."""
    modules = dict(model.named_modules())
    scores: dict[str, FloatArray] = {
        name: score(modules[name].weight.detach().movedim(graph.layers[name].weight_axes[0], 0).flatten(1).double())
        .cpu()
        .numpy()
        for name in _filtered_ids(graph)
    }
    check_finite(scores, what="weights", remedy="start from an undamaged checkpoint or train with a lower rate")
    return by_id(graph, {name: _relative_to_mean(values) for name, values in scores.items()})


def _relative_to_mean(values: FloatArray) -> FloatArray:
    mean = values.mean()
    return values / mean if mean > 0 else values


def _summed_distances(filters: Tensor) -> Tensor:
    """Return, for each of the n rows (n, d), the sum of its distances to all rows (n,)."""
    # |a - b|^2 = |a|^2 + |b|^2 - 2 ab needs one matrix product; the differences themselves would take (n, n, d).
    products = filters @ filters.T
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0).sqrt()
    # Rounding must not give a filter a distance to itself.
    return distances.fill_diagonal_(0).sum(1)
