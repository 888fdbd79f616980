"""Estimate how much the loss changes when a channel is removed, by first-order Taylor expansion.

Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017 (arXiv
1611.06440). The paper measures after the ReLU. Here a channel is measured before the activation, see
`pruning.importance.products`. For ReLU and leaky ReLU, activation times gradient is the same at both places; for SiLU
and Hardswish it differs, and ours is the derivative of the masking itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray
from pruning.importance.criteria import by_id, check_finite
from pruning.importance.masking import BatchT, LossFn
from pruning.importance.products import REMEDY, ProductRecorder


def taylor_importance(
    model: nn.Module,
    graph: ChannelGraph,
    batches: Iterable[BatchT],
    *,
    loss_fn: LossFn[BatchT],
    is_normalised: bool = True,
) -> FloatArray:
    """Rate each channel by |mean over positions of activation x gradient|, averaged over samples.

    The values of each layer are divided by their Euclidean norm, which makes layers comparable (the paper finds a
    rank correlation with the oracle of .73 with it and .14 without). For channels that several layers share, the
    values are summed.

    Args:
        model: Network; runs in evaluation mode, so that a sample's value does not depend on its batch, and is
            unchanged afterwards.
        graph: Channels of the network.
        batches: Batches to measure on; equally large, or with a loss that adds up over samples.
        loss_fn: Function that runs the network on one batch and returns the loss.
        is_normalised: Whether to divide by the norm of each layer.

    Returns:
        Importance (num_ids,), NaN for channels that are not measured, whose layers are not pruned.

    Raises:
        DataError: There are no batches.
        PruningError: A loss or gradient is NaN or infinite, or no channel can be pruned.
    """
    sums: dict[str, Tensor] = {}
    samples: dict[str, int] = {}

    def add(layer: str, products: Tensor) -> None:
        sums[layer] = sums.get(layer, torch.zeros((), device=products.device)) + products.mean(2).abs().sum(0)
        samples[layer] = samples.get(layer, 0) + len(products)

    with ProductRecorder(model, graph, add) as recorder:
        for batch in batches:
            recorder.measure(loss_fn(model, batch))
        recorder.check_measured()
    scores = {name: sums[name].double().cpu().numpy() / samples[name] for name in sums}
    # A layer without influence on the loss has no gradient.
    scores |= {name: np.zeros(len(graph.layers[name].output_ids)) for name in recorder.layers if name not in sums}
    check_finite(scores, what="activation x gradient", remedy=REMEDY)
    if is_normalised:
        scores = {name: _unit(values) for name, values in scores.items()}
    return by_id(graph, scores, is_mean=False)


def _unit(values: FloatArray) -> FloatArray:
    norm = np.linalg.norm(values)
    return values / norm if norm > 0 else values
