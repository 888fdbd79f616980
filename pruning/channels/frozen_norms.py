"""Recognise batch norms that are written as an affine map by stored numbers, as detectors with frozen norms have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BUFFERS = ("weight", "bias", "running_mean", "running_var")


def is_frozen_norm(module: nn.Module) -> bool:
    """Return whether a module without parameters computes what a batch norm with its buffers does.

    Such are `torchvision.ops.FrozenBatchNorm2d` and its like elsewhere; it is tried on noise.
    """
    buffers = dict(module.named_buffers(recurse=False))
    if set(buffers) != set(_BUFFERS) or list(module.parameters()) or module._forward_hooks:
        return False
    weight, bias, mean, var = (buffers[name].double().cpu() for name in _BUFFERS)
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
