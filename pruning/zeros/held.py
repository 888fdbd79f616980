"""Keep values of a network at exactly zero while the rest of it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.training.checkpointing import EmaHook
from models.copies import tensors_by_name

if TYPE_CHECKING:
    from engine.training.trainer import Trainer

# Bool masks by name of a parameter or buffer, True where it is kept at zero, of a shape that broadcasts to its own.
Zeros = Mapping[str, Tensor]

# Optimiser state consists of statistics of gradients, except for this key: earlier weights (LookAhead of Ranger).
_WEIGHTS_OF_OPTIMIZERS = ("slow",)


class HeldZeros:
    """Keeps values of one network at zero: gradients, weights, and the optimiser's state for them.

    A gradient of zero is not enough: momentum, weight decay, the slow weights of LookAhead and the centralisation of
    gradients would all move a weight whose gradient is zero.
    """

    def __init__(self, model: nn.Module, zeros: Zeros) -> None:
        tensors = tensors_by_name(model)
        self._held = [(tensors[name], mask.to(tensors[name].device)) for name, mask in zeros.items()]

    @torch.no_grad()
    def clear_gradients_(self) -> None:
        """Clear gradients before clipping, so that they do not count in the norm of the gradient."""
        for tensor, mask in self._held:
            if tensor.grad is not None:
                tensor.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def clear_weights_(self) -> None:
        """Set the values to zero, even those that are NaN."""
        for tensor, mask in self._held:
            tensor.masked_fill_(mask, 0)

    @torch.no_grad()
    def restart_optimizer_(self, optimizer: Optimizer) -> None:
        """Reset the optimiser's state for these values, as if they had been zero from the start."""
        for tensor, mask in self._held:
            for key, value in optimizer.state.get(tensor, {}).items():
                if not isinstance(value, Tensor) or value.shape != tensor.shape:
                    continue  # counts steps
                if key in _WEIGHTS_OF_OPTIMIZERS:
                    value.copy_(torch.where(mask, tensor, value))
                else:
                    value.masked_fill_(mask, 0)


def clear_averages_(trainer: Trainer, zeros: Zeros) -> None:
    """Set the same values of the averaged weights to zero, which the average of zeros then remains."""
    for model in _averages(trainer):
        HeldZeros(model, zeros).clear_weights_()


def _averages(trainer: Trainer) -> Iterator[nn.Module]:
    """Yield the networks of moving averages that follow the one that trains."""
    return (hook.ema.model for hook in trainer.hooks if isinstance(hook, EmaHook))
