"""Numbers with which an inexact cut shows: settled networks, masks written into weights, and relative errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray

# Relative difference in float64 below which two networks are one.
EXACT = 1e-10
_NOISE_IMAGES = 4
# Pixels by which the second size is larger than the one that a network was traced on.
_FURTHER = 32
# Largest side at which a second size is compared as well: float64 takes its time.
_LARGEST_SIDE = 128


@torch.no_grad()
def settle_(model: nn.Module, image_chw: tuple[int, int, int]) -> nn.Module:
    """Convert a fresh network to float64 and give it numbers as training leaves them; return it in evaluation mode.

    No parameter keeps a constant value, such as the zeros of a shortcut's last scale, behind which nothing would
    show, and no two weights are equal. Batch norms get the statistics of noise, which keeps signals in range.
    """
    torch.manual_seed(0)
    model.double().eval()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.3)
    for parameter in model.parameters():
        _enliven_(parameter)
    for norm in norms:
        if norm.running_mean is not None:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches: one
            norm.train()
    model(torch.rand(_NOISE_IMAGES, *image_chw, dtype=torch.float64))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def _enliven_(parameter: Tensor) -> None:
    """Replace constant values by random ones, and make all values distinct."""
    if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
        if float(parameter.flatten()[0]) == 0.0:
            parameter.normal_(0.0, 0.1)
        else:
            parameter.uniform_(0.5, 1.5)
    parameter.add_(torch.randn_like(parameter), alpha=1e-8)


def random_drop(graph: ChannelGraph, share: float, *, seed: int = 1) -> IntArray:
    """Choose a share of the prunable channels at random; every layer and every slice keeps one.

    Returns:
        Ids (n,), sorted.
    """
    ids = graph.prunable_ids
    chosen = np.random.default_rng(seed).choice(ids, int(share * len(ids)), replace=False)
    dropped = set(chosen.tolist())
    lists = [layer.output_ids for layer in graph.layers.values()]
    lists += [outputs for part in graph.parts for outputs in part.output_ids]
    for outputs in lists:
        if len(outputs) and dropped.issuperset(outputs.tolist()):
            dropped.discard(int(outputs[0]))
    return np.array(sorted(dropped), dtype=np.int64)


@torch.no_grad()
def mask_(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> None:
    """Set to zero all that makes or shifts the dropped channels, in every layer that the graph lists.

    Raises:
        LookupError: A layer that makes dropped channels has no tensor with as many rows.
    """
    for name, layer in graph.layers.items():
        rows = torch.from_numpy(np.isin(layer.output_ids, dropped))
        if bool(rows.any()) and not _zero_rows_(model, name, rows):
            raise LookupError(f"{name} ({layer.kind}): no tensor with {len(rows)} rows to mask")


def deafen_(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> None:
    """Set the weights to zero by which layers read the dropped channels, whatever these carry."""
    for name, layer in graph.layers.items():
        if layer.reads_all:
            read = torch.from_numpy(np.isin(layer.input_ids, dropped))
            model.get_submodule(name).get_parameter("weight").data.movedim(layer.weight_axes[1], 0)[read] = 0


def _zero_rows_(model: nn.Module, name: str, rows: Tensor) -> bool:
    """Set output channels of a layer, or of a stored tensor, to zero; return whether it has such channels."""
    parent, _, last = name.rpartition(".")
    owner: Any = getattr(model.get_submodule(parent), last)
    if isinstance(owner, Tensor):
        found = [(owner, dimension) for dimension, size in enumerate(owner.shape) if size == len(rows)][:1]
    else:
        found = [(tensor, 0) for tensor in _own_tensors(owner) if tensor.ndim and len(tensor) == len(rows)]
    for tensor, dimension in found:
        tensor.data.movedim(dimension, 0)[rows] = 0
    return bool(found)


def _own_tensors(layer: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a layer, output channels first; variances stay, so that nothing is divided by zero."""
    for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if isinstance(layer, nn.modules.conv._ConvTransposeNd) and name == "weight":
            # (C_in, C_out / groups, ...), to a view (C_out, C_in / groups, ...) where there is one group
            yield tensor.movedim(1, 0)
        elif name != "running_var":
            yield tensor


@torch.no_grad()
def outputs_at(model: nn.Module, image_chw: tuple[int, int, int]) -> list[Tensor]:
    """Compute all outputs for an image of noise, the same one each time."""
    generator = torch.Generator().manual_seed(7)
    return list(_tensors(model(torch.rand(1, *image_chw, generator=generator, dtype=torch.float64))))


def further_outputs(model: nn.Module, image_chw: tuple[int, int, int]) -> list[Tensor] | None:
    """Compute all outputs at a second size; None if the network does not take it, or the first is large."""
    channels, height, width = image_chw
    if max(height, width) > _LARGEST_SIDE:
        return None
    try:
        return outputs_at(model, (channels, height + _FURTHER, width + _FURTHER))
    except (RuntimeError, AssertionError, ValueError):  # what networks raise for a size that they do not take
        return None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)


def largest_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest number of each output; infinite where shapes differ.

    Raises:
        ArithmeticError: An expected number is not finite, so that nothing would be proven.
    """
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return float("inf")
    worst = 0.0
    for own, other in zip(actual, expected, strict=True):
        if not bool(torch.isfinite(other).all()):
            raise ArithmeticError("the network gives numbers that are not finite")
        error = float((own - other).abs().max() / other.abs().max().clamp(min=1e-6))
        worst = max(worst, error if error == error else float("inf"))
    return worst
