"""The training of quantize.py: a network that is rounded as it will be in integers learns to make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from commands.quantize_config import QAT_NAME, QuantizeConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_result import best_checkpoint
from engine.training.hooks import Hook
from pruning.features import Teaching
from pruning.zeros.hooks import FrozenZerosHook
from quantization.network import QuantizedNetwork
from tasks.quantised import QuantisedTask
from tasks.task import Network, Task


@dataclass(frozen=True, kw_only=True, eq=False)
class QatRun:
    """A training with simulated rounding, which `run` begins or goes on with.

    Attributes:
        task: What trains.
        config: Settings of the command.
    """

    task: QuantisedTask
    config: QuantizeConfig

    @classmethod
    def of(cls, quantised: QuantizedNetwork, task: Task, floats: Network, config: QuantizeConfig) -> QatRun:
        """Prepare the training of a network, and refuse a teacher that does not fit, before anything is written.

        Args:
            quantised: Network with its ranges, which trains.
            task: Task of the network.
            floats: The network in floating point.
            config: Settings of the command.
        """
        own = QuantisedTask(task=task, floats=floats, quantised=quantised, learns=config.learn_scales)
        run = cls(task=own, config=config)
        run._hooks(floats, config.training(Path(config.project)), Path())
        return run

    def is_begun(self, folder: Path) -> bool:
        """Return whether a run folder has a checkpoint to go on from."""
        return (folder / QAT_NAME / "weights/last.pt").exists()

    def run(self, folder: Path) -> QuantizedNetwork:
        """Train on all processes, in a folder within that of the run; return the best epoch's network."""
        task = cast("Task", self.task)
        run = partial(run_training, hooks=self._hooks, task=task)
        done = train_stage(self.config.training(folder), run=run)
        return self.task.settled(best_checkpoint(done))

    def _hooks(self, network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        """Return hooks for zeros that stay, and for a teacher."""
        hooks: list[Hook] = []
        masks = self.task.zero_masks()
        if masks:
            hooks.append(FrozenZerosHook(masks))
        features = 0.0 if self.config.teacher else self.config.features
        if self.config.distill or features:
            teaching = Teaching(answers=self.config.distill, features=features)
            hooks.append(self.task.distillation(self.config.teacher, network, teaching))
        return hooks
