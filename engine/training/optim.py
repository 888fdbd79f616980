"""Optimisers and their three parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

from engine.choices import OptimizerName


class Ranger(RAdam):
    """torch's RAdam with centralised gradients, and slow weights that move towards the fast ones every `k` steps.

    A move covers the share `alpha` of the distance.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.999),
        eps: float = 1e-5,
        k: int = 6,
        alpha: float = 0.5,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, decoupled_weight_decay=True)
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Centralise the gradients, take an RAdam step, and every `k` steps reset the weights to the slow ones."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            # A filter of one weight equals its mean, so centralising would leave nothing.
            if parameter.ndim > 1 and parameter.grad is not None and parameter[0].numel() > 1:
                parameter.grad -= parameter.grad.mean(tuple(range(1, parameter.ndim)), keepdim=True)
        # RAdam takes an empty state for a first step, so slow weights are stored after it.
        starts = {p: p.detach().clone() for p in parameters if "slow" not in self.state[p]}
        loss: float | None = super().step(closure)
        for parameter in parameters:
            state = self.state[parameter]
            if parameter in starts:
                state["slow"] = starts[parameter]
            if int(state["step"]) % self.k == 0:
                state["slow"].lerp_(parameter, self.alpha)
                parameter.copy_(state["slow"])
        return loss


def _sgd(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=True)


def _adam(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return Adam(groups, lr=lr, betas=(momentum, 0.999), fused=True)


def _adamw(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return AdamW(groups, lr=lr, betas=(momentum, 0.999), weight_decay=0.0, fused=True)


def _ranger(groups: list[dict[str, Any]], lr: float, momentum: float) -> Optimizer:
    return Ranger(groups, lr=lr)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], float, float], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "ranger": _ranger,
}

# State of each optimiser for every updated parameter: tensors of its shape and dtype, and a scalar "step".
STATE_ENTRIES: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum_buffer",),
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Ranger: ("step", "exp_avg", "exp_avg_sq", "slow"),
}


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Split the parameters into the groups "norm" (scales, not decayed), "weight" (decayed) and "bias" (not decayed).

    Weight decay applies to parameters of two or more axes, such as those of convolutions, but not to vectors.
    """
    norms: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name.endswith("bias"):
                biases.append(parameter)
            elif parameter.ndim < 2:
                norms.append(parameter)
            else:
                weights.append(parameter)
    return [
        {"params": norms, "weight_decay": 0.0, "name": "norm"},
        {"params": weights, "weight_decay": weight_decay, "name": "weight"},
        {"params": biases, "weight_decay": 0.0, "name": "bias"},
    ]


def build_optimizer(
    name: OptimizerName, model: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> Optimizer:
    """Build the optimiser `name` over the parameter groups of `model`; `momentum` is Adam's beta1."""
    return OPTIMIZERS[name](parameter_groups(model, weight_decay=weight_decay), lr, momentum)


def set_momentum_(group: dict[str, Any], momentum: float) -> None:
    """Set SGD's momentum or Adam's beta1 of one group."""
    if "momentum" in group:
        group["momentum"] = momentum
    elif "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
