"""Copies of a network to run or trace without touching the network itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


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
    memo: dict[int, object] = {id(buffer): tensors[id(buffer)] for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(tensors[id(parameter)], requires_grad=parameter.requires_grad)
    return _structural_copy(model, memo)


def _structural_copy(model: nn.Module, memo: dict[int, object]) -> nn.Module:
    """Deep-copy `model`, except for the objects that `memo` replaces, by `id`."""
    for module in model.modules():
        for value in vars(module).values():
            # Every module has a dozen dictionaries of hooks; copying the empty ones takes half of the time.
            if isinstance(value, dict) and not value:
                memo[id(value)] = type(value)()
            if isinstance(value, Tensor) and not value.is_leaf:
                # Computed by a hook before each call, as in weight normalisation; torch copies leaves alone.
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, including non-persistent ones; a shared one under each of its names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
