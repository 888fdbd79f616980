"""Batch norm over the images of all processes.

torch.nn.SyncBatchNorm works on GPUs only; on CPUs the same statistics are reduced with differentiable
collectives, so that a gloo run can be compared with a single process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all processes; the loss of each depends on it, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(value: Tensor) -> Tensor:
    total = value.clone()
    dist.all_reduce(total)
    return total


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that, in training, uses the mean and variance of the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, (B, C, H, W)."""
        if not self.training or not dist.is_initialized():
            return super().forward(x)
        values = x.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = torch.cat((values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count))
        total: Tensor = _SumOverRanks.apply(sums)  # type: ignore[no-untyped-call]
        channels = self.num_features
        number = total[-1]
        mean = total[:channels] / number
        variance = (total[channels:-1] / number - mean.square()).clamp(min=0)
        self._track(mean.detach(), variance.detach() * number.detach() / (number.detach() - 1))

        scale = (variance + self.eps).rsqrt() * self.weight
        shift = self.bias - mean * scale
        normalised: Tensor = values * scale[:, None, None] + shift[:, None, None]
        return normalised.to(x.dtype)

    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)
        self.num_batches_tracked += 1


def synchronise_batch_norms_(model: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm2d of `model` use the statistics of all processes, with names and weights unchanged."""
    replacement: type[nn.Module] = nn.SyncBatchNorm if device.type == "cuda" else CpuSyncBatchNorm2d
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            # Only `forward` differs, so swapping the class keeps parameters, hooks and references.
            _become_(module, replacement)
            if device.type == "cuda":
                module.__dict__["process_group"] = None


def plain_batch_norms_(model: nn.Module) -> None:
    """Undo `synchronise_batch_norms_`, for copies of the model that a single process evaluates."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm | CpuSyncBatchNorm2d):
            _become_(module, nn.BatchNorm2d)


def _become_(module: nn.Module, replacement: type[nn.Module]) -> None:
    module.__class__ = replacement
