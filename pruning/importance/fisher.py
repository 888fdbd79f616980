"""Estimate how much the loss changes when a channel is removed, by the Fisher information of its mask.

Liu et al., "Group Fisher Pruning for Practical Network Compression", ICML 2021 (arXiv 2108.00708). Let each channel
be multiplied by a mask of 1. To second order, with the Fisher information for the Hessian, setting the mask to zero
changes the loss by half the mean square, over samples, of the gradient of the mask, which is the sum over positions
of activation times gradient. Channels that several layers share have one mask, so their layers are added up before
squaring. All layers are in the unit of the loss, so nothing is normalised, and what a channel costs can divide it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray
from pruning.importance.criteria import check_finite, num_ids
from pruning.importance.masking import BatchT, LossFn
from pruning.importance.products import REMEDY, ProductRecorder


def fisher_importance(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[BatchT], *, loss_fn: LossFn[BatchT]
) -> FloatArray:
    """Rate each channel by the mean square, over samples, of the gradient of its mask.

    Args:
        model: Network; runs in evaluation mode, so that a sample's value does not depend on its batch, and is
            unchanged afterwards.
        graph: Channels of the network.
        batches: Batches to measure on; equally large.
        loss_fn: Function that runs the network on one batch and returns the loss, a sum over samples; a mean changes
            all values alike.

    Returns:
        Importance (num_ids,), in the square of the loss's unit; NaN for channels that are not measured, whose layers
        are not pruned.

    Raises:
        DataError: There are no batches.
        PruningError: A loss or gradient is NaN or infinite, or no channel can be pruned.
    """
    masks = _MaskGradients(graph)
    squares: Tensor | None = None
    samples = 0
    with ProductRecorder(model, graph, masks.add) as recorder:
        for batch in batches:
            recorder.measure(loss_fn(model, batch))
            gradients = masks.take()  # (B, num_ids)
            added = gradients.double().square().sum(0)
            squares, samples = added if squares is None else squares + added, samples + len(gradients)
        recorder.check_measured()
    assert squares is not None
    means = squares.cpu().numpy() / samples
    measured = {name: graph.layers[name].output_ids for name in recorder.layers}
    found = np.full(num_ids(graph), np.nan)
    for ids in measured.values():
        found[ids] = means[ids]
    scores = {name: found[ids] for name, ids in measured.items()}
    check_finite(scores, what="activation x gradient", remedy=REMEDY)
    return found


class _MaskGradients:
    """Adds up, for one batch, the gradients of the masks over the layers that share them."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._graph, self._size = graph, num_ids(graph)
        self._gradients: Tensor | None = None

    def add(self, layer: str, products: Tensor) -> None:
        """Add the products (B, C, positions) of one layer."""
        if self._gradients is None:
            self._gradients = torch.zeros(len(products), self._size, device=products.device)
        ids = torch.from_numpy(self._graph.layers[layer].output_ids).to(products.device)
        self._gradients.index_add_(1, ids, products.sum(2))

    def take(self) -> Tensor:
        """Return the gradients (B, num_ids) of a batch, and begin the next one."""
        gradients, self._gradients = self._gradients, None
        assert gradients is not None, "no layer has an influence on the loss"
        return gradients
