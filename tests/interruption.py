"""A run that is killed on its way, and what shows that it went on as if it had not been."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from utils.storage.checkpoint import load_checkpoint


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


class KillAfter(Hook):
    """Ends the process in the given epoch, after some of its steps."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def weights_updated(self, trainer: Trainer) -> None:
        if trainer.state.epoch == self.epoch:
            raise Killed


def assert_same_weights(first: Path, second: Path) -> None:
    one, two = load_checkpoint(first).best_weights, load_checkpoint(second).best_weights
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
