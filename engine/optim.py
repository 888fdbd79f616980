"""Optimisers and their three groups of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from engine.ranger import Ranger

OptimizerName = Literal["sgd", "adam", "adamw", "ranger"]


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

# What each keeps of every parameter that it has moved: tensors of its shape and type, and "step" without axes.
STATE_ENTRIES: dict[type[Optimizer], tuple[str, ...]] = {
    SGD: ("momentum_buffer",),
    Adam: ("step", "exp_avg", "exp_avg_sq"),
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    Ranger: ("step", "exp_avg", "exp_avg_sq", "slow"),
}


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Three groups, named "norm" (scales, not decayed), "weight" (decayed) and "bias" (not decayed).

    A convolution's weights are decayed; those of norms, and every vector, are not.
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
    """The optimiser `name` over the parameter groups of `model`; `momentum` is Adam's beta1."""
    return OPTIMIZERS[name](parameter_groups(model, weight_decay=weight_decay), lr, momentum)


def set_momentum_(group: dict[str, Any], momentum: float) -> None:
    """Set SGD's momentum or Adam's beta1 of one group."""
    if "momentum" in group:
        group["momentum"] = momentum
    elif "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
