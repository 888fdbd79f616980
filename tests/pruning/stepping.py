"""A training loop of a few lines with the seams of the Trainer, for hooks on networks of any kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from engine.choices import OptimizerName
from engine.training.checkpointing import EmaHook
from engine.training.hooks import Hook
from engine.training.optim import build_optimizer
from engine.training.trainer import TrainState
from models.detector import Detector

Check = Callable[[Any], None]


class Calls(Hook):
    """Calls back after a step, behind all other hooks."""

    def __init__(self, check: Check) -> None:
        self.weights_updated = check  # type: ignore[method-assign]


class SmallNet(nn.Module):
    """Three convolutions with batch norms, the second with a bias too, and a linear layer."""

    def __init__(self, *, width: int = 8) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.norm2 = nn.Conv2d(6, width, 3, padding=1), nn.BatchNorm2d(width)
        self.third, self.norm3 = nn.Conv2d(width, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.first(x)).relu()
        x = self.norm2(self.second(x)).relu()
        x = self.norm3(self.third(x)).relu()
        return self.last(x.mean((2, 3)))


def small_net(*, width: int = 8) -> SmallNet:
    torch.manual_seed(0)
    return SmallNet(width=width)


def make_trainer(
    model: nn.Module, hooks: Sequence[Hook], *, optimizer: OptimizerName = "sgd", epochs: int = 4
) -> Any:
    """What hooks see of a Trainer; the averages follow `hooks`, as in a run."""
    return SimpleNamespace(
        model=model,
        optimizer=build_optimizer(optimizer, model, lr=0.05, momentum=0.9, weight_decay=0.01),
        state=TrainState(),
        settings=SimpleNamespace(epochs=epochs, seed=0),
        process=SimpleNamespace(is_main=True),
        hooks=[*hooks, EmaHook(model, total_updates=8 * epochs)],
    )


def fit(trainer: Any, *, epochs: int | None = None, steps: int = 8, check: Check | None = None) -> None:
    """Train to the end, or to an earlier epoch as if the process were killed after it.

    Args:
        trainer: From `make_trainer`.
        epochs: Stop after this many.
        steps: Of each epoch; more than Ranger's six between two looks ahead.
        check: Called after each.
    """
    hooks = [*trainer.hooks, *([Calls(check)] if check else [])]
    for hook in hooks:
        hook.before_training(trainer)
    while trainer.state.epoch + 1 < (epochs or trainer.settings.epochs):
        trainer.state.epoch += 1
        trainer.state.is_interim = False
        torch.manual_seed(trainer.state.epoch)
        for _ in range(steps):
            _loss(trainer.model.train()).backward()
            for hook in hooks:
                hook.gradients_ready(trainer)
            nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)
            for hook in hooks:
                hook.weights_updated(trainer)
        for hook in hooks:
            hook.epoch_end(trainer)
        trainer.state.metrics = {"accuracy": trainer.state.epoch / 10}  # validation is behind a method's hooks
        trainer.state.judge(trainer.state.epoch / 10)
    if trainer.state.epoch + 1 == trainer.settings.epochs:
        for hook in hooks:
            hook.end(trainer)


def average_of(trainer: Any) -> nn.Module:
    """The moving average of the network that trains."""
    model: nn.Module = trainer.hooks[-1].ema.model
    return model


def _loss(model: nn.Module) -> Tensor:
    if isinstance(model, Detector):
        return sum((head.square().mean() for head in model(torch.rand(2, 3, 64, 64))), torch.zeros(()))
    return nn.functional.cross_entropy(model(torch.rand(4, 3, 8, 8)), torch.randint(4, (4,)))
