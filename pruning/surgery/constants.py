"""Carry the constants that cut channels would have passed on into the layers that read them.

A channel whose batch-norm scale is zero equals its shift at every position, and is constant after an activation as
well. A convolution that reads it adds that constant, times its weights, to each of its outputs: a bias. So such a
channel can be cut without loss, except at the borders of zero-padded convolutions, where the padding is not constant.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.copies import twin_that_shares
from pruning.channels.graph import ChannelGraph
from pruning.channels.groups import LayerChannels
from pruning.channels.ids import BoolArray, IntArray
from pruning.channels.layer_rules import CONV, LINEAR
from pruning.channels.stand_in import output_shape
from pruning.surgery.slicing import kept_positions

log = logging.getLogger(__name__)

# Two different images: a value that differs between them is not constant.
_BATCH = 2
# Rounding error, in units of the last place, within which two values are the same.
_ROUNDING = 64


def carry_constants_(tensors: Mapping[str, Tensor], model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> None:
    """Add the constants of dropped channels to the layers of a cut network that read them.

    A constant is added to the bias of the layer, else to the means of the batch norms behind it if nothing else reads
    its output. Channels that are not constant, such as gated ones, count as zero.

    Args:
        tensors: Tensors of the cut network by name, changed in place.
        model: Network before the cut.
        graph: Channels of `model`.
        stays: Mask of the kept channels by id (n,).
    """
    if any(tensor.is_meta for tensor in tensors.values()):
        return  # there are no numbers to carry
    lost = 0
    for name, constants in dropped_constants(model, graph, stays).items():
        lost += int(constants.isnan().sum())
        weight = model.get_parameter(f"{name}.weight").movedim(graph.layers[name].weight_axes[0], 0)
        shift = _shift_of(weight, constants.nan_to_num())
        if not shift.any():
            continue
        if f"{name}.bias" in tensors:
            kept = kept_positions(graph.layers[name].output_ids, stays)
            _add_(tensors[f"{name}.bias"], shift[kept])
        elif name in graph.norms_after:
            for norm in graph.norms_after[name]:
                sources = norm.sources[kept_positions(graph.layers[norm.name].output_ids, stays)]
                _add_(tensors[f"{norm.name}.running_mean"], -shift[sources] * torch.from_numpy(sources >= 0))
        else:
            lost += int((constants != 0).sum())
    if lost:
        log.info("%d cut input channels are not constant or reach no bias or batch norm; they count as zero", lost)


@torch.no_grad()
def dropped_constants(model: nn.Module, graph: ChannelGraph, stays: BoolArray) -> dict[str, Tensor]:
    """Find the constants that each layer would read from the dropped channels if their scales were zero.

    Args:
        model: Network; it is not changed.
        graph: Channels of the network.
        stays: Mask of the kept channels by id (n,).

    Returns:
        Constants (C_in,), float64 on the CPU, by path of each convolution and linear layer that reads a dropped
        channel; NaN where a channel is not constant, zero where it is kept.
    """
    twin = twin_that_shares(model)
    scaled = zero_scales_(twin, graph, stays)
    noise = torch.Generator().manual_seed(0)
    for name, module in twin.named_modules():
        is_plain = type(module).forward is nn.Conv2d.forward
        is_plain = is_plain and name in graph.layers and graph.layers[name].kind == CONV
        if is_plain and name not in scaled:
            # Values that are not constant are arbitrary, and noise costs less than a convolution.
            module.forward = partial(_noise_like, module, noise)
    seen: dict[str, list[Tensor]] = {}
    positions: dict[str, IntArray] = {}
    for layer in graph.layers.values():
        gone = np.flatnonzero(~stays[layer.input_ids])
        if layer.reads_all and len(gone):
            positions[layer.name], seen[layer.name] = gone, []
            listener = _listener(gone, seen[layer.name], is_linear=layer.kind == LINEAR)
            twin.get_submodule(layer.name).register_forward_pre_hook(listener, with_kwargs=True)
    twin(*noise_for(model, graph))
    return {
        name: _constants(seen[name], gone, num_channels=len(graph.layers[name].input_ids))
        for name, gone in positions.items()
    }


def zero_scales_(twin: nn.Module, graph: ChannelGraph, stays: BoolArray) -> set[str]:
    """Set the scales of dropped channels to zero in every batch norm, or in their producer if there is none.

    Shifts are kept.

    Args:
        twin: Network whose layers are changed, but not their tensors, which it may share with another.
        graph: Channels of the network.
        stays: Mask of the kept channels by id (n,).

    Returns:
        Paths of the layers that were changed.
    """
    changed = set()
    layers = [layer for layer in graph.layers.values() if _is_scaled(twin, layer)]
    has_norm = np.zeros_like(stays)
    for layer in layers:
        if layer.is_norm:
            has_norm[layer.output_ids] = True
    for layer in layers:
        unscaled = ~stays if layer.is_norm else ~stays & ~has_norm
        rows = np.flatnonzero(unscaled[layer.output_ids])
        if len(rows):
            module = twin.get_submodule(layer.name)
            weight = _weight_of(module).detach().clone()
            weight.movedim(0 if weight.ndim == 1 else layer.weight_axes[0], 0)[torch.from_numpy(rows)] = 0
            if "weight" in module._buffers:
                module._buffers["weight"] = weight
            else:
                module.weight = nn.Parameter(weight, requires_grad=False)
            changed.add(layer.name)
    return changed


def _noise_like(layer: nn.Conv2d, noise: torch.Generator, images: Tensor) -> Tensor:
    """Return noise of the shape of a convolution's output, different at every position."""
    shape = output_shape(layer, images)
    return torch.rand(shape, generator=noise).to(images)


def _is_scaled(twin: nn.Module, layer: LayerChannels) -> bool:
    """Return whether a layer has weights; a batch norm may have none."""
    return isinstance(twin.get_submodule(layer.name).weight, Tensor)


def _weight_of(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _listener(gone: IntArray, seen: list[Tensor], *, is_linear: bool) -> Any:
    """Build a hook that records the median value (B, n) of some input channels of a layer for each image."""

    def note(layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        read = (args or tuple(kwargs.values()))[0].movedim(-1 if is_linear else 1, 1)
        values = read[:, torch.from_numpy(gone).to(read.device)]
        # The median over positions ignores borders changed by padding, which are few.
        seen.append(values.flatten(2).median(2).values if values.ndim > 2 else values)

    return note


def noise_for(model: nn.Module, graph: ChannelGraph) -> tuple[Tensor, ...]:
    """Return inputs (B, C, ...) of noise, the same every time, without touching the global random state."""
    generator = torch.Generator().manual_seed(0)
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return tuple(torch.rand(_BATCH, *shape, generator=generator).to(like) for shape in graph.input_shapes)


def _constants(seen: list[Tensor], gone: IntArray, *, num_channels: int) -> Tensor:
    """Reduce the values (B, n) of each call to constants (num_channels,), NaN where they disagree or are unknown."""
    values = torch.cat(seen) if seen else torch.full((1, len(gone)), torch.nan)
    precision = torch.finfo(values.dtype).eps
    exact = values.double().cpu()
    spread, largest = exact.amax(0) - exact.amin(0), exact.abs().amax(0)
    constants = torch.zeros(num_channels, dtype=torch.float64)
    # Written so that NaN in the network does not count as a constant either.
    constants[torch.from_numpy(gone)] = torch.where(spread <= _ROUNDING * precision * largest, exact[0], torch.nan)
    return constants


def _shift_of(weight: Tensor, constants: Tensor) -> Tensor:
    """Compute what constant inputs (C_in,) add to each output of a layer (C_out,), float64 on the CPU."""
    inputs = constants.nonzero().flatten()
    read = weight.detach().index_select(1, inputs.to(weight.device))
    summed = read.flatten(2).sum(2) if read.ndim > 2 else read
    return summed.double().cpu() @ constants[inputs]


def _add_(tensor: Tensor, values: Tensor) -> None:
    """Add float64 values from the CPU in place, rounding once."""
    tensor.copy_(tensor.double() + values.to(tensor.device))
