"""Copies of a network to run or trace without touching the network itself."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

# Types of values that never change.
_PLAIN = (bool, int, float, str, type(None))
_CONTAINERS = (dict, OrderedDict, list, set)


def twin_without_numbers(model: nn.Module) -> nn.Module:
    """Copy `model` in evaluation mode with parameters and buffers on the meta device; no data are copied."""
    meta = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors_by_name(model).values()}
    return twin_with(model, meta).eval()


def twin_with_numbers(model: nn.Module) -> nn.Module:
    """Copy `model` in evaluation mode, on the CPU, in float32."""
    return copy.deepcopy(model).cpu().float().eval()


def twin_that_shares(model: nn.Module) -> nn.Module:
    """Copy the modules of `model` in evaluation mode; the copy shares its parameters and buffers."""
    return _structural_copy(model, {id(tensor): tensor for tensor in tensors_by_name(model).values()}).eval()


def twin_with(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """Copy `model` with other parameters and buffers.

    Args:
        model: Network to copy; it is not changed.
        tensors: Replacement of each parameter and buffer, by `id` of the original.
    """
    memo: dict[int, Any] = {id(buffer): tensors[id(buffer)] for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(tensors[id(parameter)], requires_grad=parameter.requires_grad)
    return _structural_copy(model, memo)


def _structural_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Deep-copy `model`, except for the objects that `memo` replaces, by `id`."""
    copied = _copied(model, memo)
    assert isinstance(copied, nn.Module)
    return copied


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return what `copy.deepcopy` does; of modules, dictionaries and plain values in a tenth of its time."""
    kind: Any = type(value)
    if kind in _PLAIN or (kind is tuple and all(type(each) in _PLAIN for each in value)):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _CONTAINERS and not value:
        # Every module has a dozen of them, of hooks.
        memo[id(value)] = empty = kind()
        return empty
    if kind in (dict, OrderedDict):
        memo[id(value)] = twin = kind()
        for key, each in value.items():
            twin[key] = _copied(each, memo)
        return twin
    if isinstance(value, nn.Module) and _is_copied_as_usual(kind):
        memo[id(value)] = module = kind.__new__(kind)
        own = module.__dict__
        for key, each in vars(value).items():
            own[key] = each if type(each) in _PLAIN else _copied(each, memo)
        return module
    if isinstance(value, Tensor) and not value.is_leaf:
        # Computed by a hook before each call, as in weight normalisation; torch copies leaves alone.
        return value.detach().clone()
    return copy.deepcopy(value, memo)


@cache
def _is_copied_as_usual(kind: type[nn.Module]) -> bool:
    """Return whether a class of modules has no way of its own to be copied."""
    names = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in names)


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, including non-persistent ones; a shared one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
