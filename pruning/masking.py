"""Channels set to zero for a while, without cutting them, and what that does to the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channel_ids import FloatArray, IntArray
from pruning.criteria import num_ids
from pruning.graph import ChannelGraph
from pruning.training_task import BatchT, LossFn
from utils.errors import DataError


@contextmanager
def masked(model: nn.Module, graph: ChannelGraph, ids: IntArray) -> Iterator[None]:
    """In this context everything that makes, scales or shifts these channels is zero; afterwards all is as before.

    Args:
        model: Changed in place and restored.
        graph: Its channels.
        ids: Those to silence (n,).
    """
    saved: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer in graph.layers.values():
        positions = np.flatnonzero(np.isin(layer.output_ids, ids))
        if not len(positions):
            continue
        for tensor in model.get_submodule(layer.name).parameters(recurse=False):
            rows = torch.from_numpy(positions).to(tensor.device)
            saved.append((tensor, rows, tensor.detach()[rows]))
    with torch.no_grad():
        for parameter, rows, _ in saved:
            parameter[rows] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, rows, values in saved:
                parameter[rows] = values


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode in this context; afterwards each module has its own mode again."""
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
    """|Change of the loss| when a channel is masked, one after the other: what Taylor expansion estimates.

    The oracle of Molchanov et al., ICLR 2017 (arXiv 1611.06440): exact and slow, for tests.

    Args:
        model: Runs in evaluation mode; unchanged after.
        graph: Its channels.
        batches: Run once per channel and once more.
        loss_fn: Runs the network on one batch.
        ids: Channels to try (n,).

    Returns:
        (num_ids,), mean over batches, NaN for all other channels.

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
