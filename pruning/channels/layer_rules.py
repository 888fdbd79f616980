"""Channel rules of layers that have weights per channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.channels.ids import IntArray
from pruning.channels.recording import Call, Channels, LayerRecord, PartRecord, Stored, Tracked, UnknownOperator

CONV, DEPTHWISE, GROUPED, LINEAR, BATCH_NORM = "conv", "depthwise", "grouped", "linear", "batch_norm"
TRANSPOSED = "transposed"
# Layers each of whose outputs has weights for every input.
READS_ALL = (CONV, LINEAR, TRANSPOSED)
_WEIGHT = ".weight"
# Buffers of a batch norm whose scales do not train.
_FROZEN = ("weight", "bias", "running_mean", "running_var")


def weight_axes(kind: str) -> tuple[int, int]:
    """Return the dimensions of the weight of such a layer along which outputs and inputs lie."""
    return (1, 0) if kind == TRANSPOSED else (0, 1)


def convolution(call: Call) -> Channels:
    """Issue new output channels; a convolution of groups gives each group's outputs the one id of its inputs.

    Groups are kept or cut whole: cutting channels inside of one would make groups unequally wide. A depthwise
    convolution has one input channel per group.
    """
    layer: Any = call.layer
    kind = TRANSPOSED if layer.transposed and layer.groups == 1 else CONV
    if call.output.ndim != 2 + len(layer.kernel_size):
        raise UnknownOperator("it works on a single image")
    return _convolved(call, str(call.node.target), layer, kind=kind, groups=layer.groups)


def convolution_function(call: Call) -> Channels:
    """Follow a convolution by parameters of the network, as `convolution` does a layer."""
    name, owner = _owner_of(call, call.argument(1, "weight"))
    groups = call.argument(6, "groups", 1)
    _check_followed(call.argument(2, "bias"), call.output.shape[1])
    channels = _convolved(call, name, owner, kind=CONV, groups=groups)
    _tie_stored(call, call.argument(2, "bias"), channels.ids)
    if groups > 1:
        made = call.recording.layers[name]
        record = PartRecord(kind="groups", axis=1, input_ids=made.input_ids, output_ids=(made.input_ids,))
        call.recording.parts.append((call.node.name, record))
    return channels


def _convolved(call: Call, name: str, owner: nn.Module, *, kind: str, groups: int) -> Channels:
    ids, made = call.read_along(1), call.output.shape[1]
    if groups == 1:
        return _note(call, name, owner, kind, ids, call.recording.ids.new(made))
    if getattr(owner, "transposed", False) and not groups == len(ids) == made:
        raise UnknownOperator("it is a transposed convolution of groups")
    firsts = ids[:: len(ids) // groups]
    call.recording.ids.tie(np.repeat(firsts, len(ids) // groups), ids)
    kind = DEPTHWISE if groups == len(ids) else GROUPED
    return _note(call, name, owner, kind, ids, np.repeat(firsts, made // groups))


def linear(call: Call) -> Channels:
    """Issue new output channels for a layer that reads the last dimension."""
    return _projected(call, str(call.node.target), call.layer)


def linear_function(call: Call) -> Channels:
    """Follow a linear map by parameters of the network, as `linear` does a layer."""
    name, owner = _owner_of(call, call.argument(1, "weight"))
    _check_followed(call.argument(2, "bias"), call.output.shape[-1])
    channels = _projected(call, name, owner)
    _tie_stored(call, call.argument(2, "bias"), channels.ids)
    return channels


def _projected(call: Call, name: str, owner: nn.Module) -> Channels:
    last = call.output.ndim - 1
    made = call.recording.ids.new(call.output.shape[last])
    return _note(call, name, owner, LINEAR, call.read_along(last), made, axis=last)


def batch_norm(call: Call) -> Channels:
    """Pass on the input channels, each of which has a scale and a shift."""
    ids = call.read_along(1)
    return _note(call, str(call.node.target), call.layer, BATCH_NORM, ids, ids)


def batch_norm_function(call: Call) -> Channels:
    """Pass on the input channels; a norm by the parameters of a batch-norm module is that module."""
    ids = call.read_along(1)
    values = [call.argument(place, name) for place, name in enumerate(("running_mean", "running_var", "weight"), 1)]
    for value in (*values, call.argument(4, "bias")):
        _tie_stored(call, value, ids)
    name = next((value.stored for value in values if isinstance(value, Tracked)), None) or ""
    path = name.rpartition(".")[0]
    if path and isinstance(call.owner_of(path), nn.modules.batchnorm._BatchNorm):
        return _note(call, path, call.owner_of(path), BATCH_NORM, ids, ids)
    return Channels(ids=ids, axis=1)


def prelu(call: Call) -> Channels:
    """Pass on the input channels, with a slope for each or one for all."""
    value, slopes = call.input, call.layer.get_parameter("weight")
    if slopes.numel() > 1:
        call.recording.add_stored(f"{call.node.target}.weight", 0, value.along(1))
    return value.channels


def prelu_function(call: Call) -> Channels:
    """Pass on the input channels, with a slope for each or one for all."""
    slopes = call.argument(1, "weight")
    if not isinstance(slopes, Tracked | Tensor | Stored):
        raise UnknownOperator("its slopes are unknown")
    if isinstance(slopes, Tracked) and len(slopes.ids) > 1:
        _tie_stored(call, slopes, call.input.along(1))
    elif (slopes.tensor if isinstance(slopes, Tracked | Stored) else slopes).numel() > 1:
        raise UnknownOperator("it has a slope per channel, which cannot be cut")
    return call.input.channels


def _owner_of(call: Call, weight: Any) -> tuple[str, nn.Module]:
    """Return the module, and its path, whose parameter `weight` is.

    Raises:
        UnknownOperator: The weight is computed, or its module has another name for it.
    """
    name = weight.name if isinstance(weight, Stored) else getattr(weight, "stored", None)
    if name is None:
        raise UnknownOperator("its weight is computed")
    path = name.removesuffix(_WEIGHT)
    if path == name:
        raise UnknownOperator(f"its weight {name} is not the parameter 'weight' of a module")
    return path, call.owner_of(path)


def _tie_stored(call: Call, value: Any, ids: IntArray) -> None:
    """Tie a parameter or buffer of one value per channel, if there is one."""
    if value is None:
        return
    _check_followed(value, len(ids))
    call.recording.ids.tie(value.ids, ids)


def _check_followed(value: Any, size: int) -> None:
    """Raise `UnknownOperator` if there is a bias or the like that is not one value for each of the channels."""
    if value is not None and not (isinstance(value, Tracked) and len(value.ids) == size):
        raise UnknownOperator("its bias or statistics are computed without channels")


def _note(
    call: Call, name: str, owner: nn.Module, kind: str, input_ids: IntArray, output_ids: IntArray, *, axis: int = 1
) -> Channels:
    is_called = call.module is not None
    layer = LayerRecord(kind=kind, module=owner, input_ids=input_ids, output_ids=output_ids, is_called=is_called)
    call.recording.add_layer(name, layer, node=call.node.name)
    return Channels(ids=output_ids, axis=axis)


def is_frozen_norm(module: nn.Module) -> bool:
    """Return whether a module without parameters computes what a batch norm with its buffers does.

    Such are `torchvision.ops.FrozenBatchNorm2d` and its like elsewhere; it is tried on noise.
    """
    buffers = dict(module.named_buffers(recurse=False))
    if set(buffers) != set(_FROZEN) or list(module.parameters()) or module._forward_hooks:
        return False
    weight, bias, mean, var = (buffers[name].double().cpu() for name in _FROZEN)
    if weight.is_meta or weight.ndim != 1:
        return False
    noise = torch.randn(1, len(weight), 2, 2, generator=torch.Generator().manual_seed(0)).double()
    eps = float(getattr(module, "eps", 1e-5))
    expected = nn.functional.batch_norm(noise, mean, var, weight, bias, eps=eps)
    found = _applied(module, noise.to(buffers["weight"]))
    return found is not None and torch.allclose(found.double().cpu(), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def _applied(module: nn.Module, noise: Tensor) -> Tensor | None:
    """Return what a module computes, or None if it does not take a map."""
    try:
        found = module.forward(noise)
    except (RuntimeError, TypeError, AttributeError):
        return None
    return found if isinstance(found, Tensor) and found.shape == noise.shape else None
