"""Ranger: rectified Adam, LookAhead and gradient centralisation.

Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond", ICLR 2020 (RAdam); Zhang et al., "Lookahead
Optimizer: k steps forward, 1 step back", NeurIPS 2019; Yong et al., "Gradient Centralization", ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import RAdam


class Ranger(RAdam):
    """torch's RAdam with slow weights: every `k` steps they go `alpha` of the way to the fast ones."""

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
        """Centralise gradients, take an RAdam step, and every `k` steps fall back towards the slow weights."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            # A filter of one weight has nothing but its mean.
            if parameter.ndim > 1 and parameter.grad is not None and parameter[0].numel() > 1:
                parameter.grad -= parameter.grad.mean(tuple(range(1, parameter.ndim)), keepdim=True)
        # RAdam takes an empty state as the sign of a first step, so slow weights go in after it.
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
