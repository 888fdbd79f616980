"""Numbers of a network that are held at exactly zero while the rest of it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.checkpointing import EmaHook
from utils.twins import tensors_by_name

if TYPE_CHECKING:
    from engine.trainer import Trainer

# By name of a parameter or buffer: bool, True where it is held at zero, of a shape that broadcasts to its own.
Zeros = Mapping[str, Tensor]

# What an optimiser remembers is about gradients, but for these, which are earlier weights (LookAhead of Ranger).
_WEIGHTS_OF_OPTIMIZERS = ("slow",)


class HeldZeros:
    """Holds numbers of one network at zero: gradients, weights, and whatever an optimiser remembers of them.

    A gradient of zero is not enough: momentum, weight decay, the slow weights of LookAhead and the centralisation of
    gradients would all move a weight that has none.
    """

    def __init__(self, model: nn.Module, zeros: Zeros) -> None:
        tensors = tensors_by_name(model)
        self._held = [(tensors[name], mask.to(tensors[name].device)) for name, mask in zeros.items()]

    @torch.no_grad()
    def clear_gradients_(self) -> None:
        """Before clipping: what is held has no part in the length of the gradient."""
        for tensor, mask in self._held:
            if tensor.grad is not None:
                tensor.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def clear_weights_(self) -> None:
        """Set them to zero; what is NaN as well."""
        for tensor, mask in self._held:
            tensor.masked_fill_(mask, 0)

    @torch.no_grad()
    def restart_optimizer_(self, optimizer: Optimizer) -> None:
        """Let the optimiser forget what it knows of these numbers, as if they were as they are from the start."""
        for tensor, mask in self._held:
            for key, value in optimizer.state.get(tensor, {}).items():
                if not isinstance(value, Tensor) or value.shape != tensor.shape:
                    continue  # counts steps
                if key in _WEIGHTS_OF_OPTIMIZERS:
                    value.copy_(torch.where(mask, tensor, value))
                else:
                    value.masked_fill_(mask, 0)


def clear_averages_(trainer: Trainer, zeros: Zeros) -> None:
    """Set the same numbers of the averaged weights to zero; the average of zeros stays zero after that."""
    for model in _averages(trainer):
        HeldZeros(model, zeros).clear_weights_()


def _averages(trainer: Trainer) -> Iterator[nn.Module]:
    """The networks of moving averages that follow the one that trains."""
    return (hook.ema.model for hook in trainer.hooks if isinstance(hook, EmaHook))
