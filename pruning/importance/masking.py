"""Set channels to zero for a while without cutting them, and measure the change of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.importance.criteria import num_ids
from utils.errors import DataError

BatchT = TypeVar("BatchT")

# Computes the scalar loss of a network on a batch.
LossFn = Callable[[nn.Module, BatchT], Tensor]


@contextmanager
def masked(model: nn.Module, graph: ChannelGraph, ids: IntArray) -> Iterator[None]:
    """Zero everything that produces, scales or shifts these channels within the context; restore it afterwards.

    Args:
        model: Network, changed in place and restored.
        graph: Channels of the network.
        ids: Ids of the channels to mask (n,).
    """
    saved: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer in graph.layers.values():
        positions = np.flatnonzero(np.isin(layer.output_ids, ids))
        if not len(positions):
            continue
        for tensor in model.get_submodule(layer.name).parameters(recurse=False):
            # A view, so that writing to it writes to the parameter.
            by_output = tensor.detach().movedim(layer.weight_axes[0] if tensor.ndim > 1 else 0, 0)
            rows = torch.from_numpy(positions).to(tensor.device)
            saved.append((by_output, rows, by_output[rows]))
    for view, rows, _ in saved:
        view[rows] = 0
    try:
        yield
    finally:
        for view, rows, values in saved:
            view[rows] = values


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode within the context; restore the mode of each module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def oracle_importance(
    model: nn.Module, graph: ChannelGraph, batches: Sequence[BatchT], *, loss_fn: LossFn[BatchT], ids: IntArray
) -> FloatArray:
    """Measure the absolute change of the loss when each channel alone is masked, which Taylor expansion estimates.

    The oracle of Molchanov et al., ICLR 2017 (arXiv 1611.06440): exact and slow, for tests.

    Args:
        model: Network; runs in evaluation mode and is unchanged afterwards.
        graph: Channels of the network.
        batches: Batches to run once per channel and once unmasked.
        loss_fn: Function that runs the network on one batch and returns the loss.
        ids: Channels to mask (n,).

    Returns:
        Change of the mean loss over the batches (num_ids,), NaN for all other channels.

    Raises:
        DataError: There are no batches.
    """
    if not batches:
        raise DataError("there are no batches to try channels on; give at least one")

    def mean_loss() -> float:
        return sum(float(loss_fn(model, batch)) for batch in batches) / len(batches)

    found = np.full(num_ids(graph), np.nan)
    with evaluating(model), torch.no_grad():
        unmasked = mean_loss()
        for channel in ids.tolist():
            with masked(model, graph, np.array([channel])):
                found[channel] = abs(mean_loss() - unmasked)
    return found
