"""The hooks that carry a run: the shadow weights, and the checkpoints on disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine.config import RESUME_LATEST
from engine.ema import Ema
from engine.hooks import Hook
from engine.trainer import Trainer
from utils.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, strip
from utils.errors import CheckpointError
from utils.files import atomic_write
from utils.run_folder import plain


def resumed_path(resume: str, project: str) -> Path:
    """The last.pt that `--resume` means: the one given, or that of the newest run in `project`.

    Raises:
        CheckpointError: No run there has one.
    """
    if resume != RESUME_LATEST:
        return Path(resume)
    found = sorted(Path(project).glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"--resume: no run in {project} has weights/last.pt; give the path of one")
    return found[-1]


class EmaHook(Hook):
    """Keeps the moving average of the weights up to date."""

    def __init__(self, model: nn.Module, *, total_updates: int) -> None:
        self.ema = Ema(model, total_updates=total_updates)

    def weights_updated(self, trainer: Trainer) -> None:
        """Follow the model."""
        self.ema.update(trainer.model)


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Which checkpoints are kept.

    Attributes:
        period: Also one every this many epochs, where positive.
        is_final_only: None before the last epoch.
        is_half: Those that are left to ship hold float16.
    """

    period: int = -1
    is_final_only: bool = False
    is_half: bool = True


class CheckpointHook(Hook):
    """Writes last.pt before training and after every epoch, best.pt when a validation was the best so far."""

    def __init__(
        self,
        folder: Path,
        *,
        spec: dict[str, Any],
        names: tuple[str, ...],
        config: Any,
        ema: Ema | None,
        policy: SavePolicy = SavePolicy(),
    ) -> None:
        """Describe the checkpoints.

        Args:
            folder: Where they are written.
            spec: What the network is, as plain data.
            names: Of the classes.
            config: Settings of the run.
            ema: Average of the weights, which is what is shipped; None ships the weights.
            policy: Which are kept.
        """
        self.folder, self.spec, self.names = folder, spec, names
        self.config, self.ema, self.policy = plain(config), ema, policy

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation."""
        return self.folder / "best.pt"

    def before_training(self, trainer: Trainer) -> None:
        """A run killed in its first epoch resumes too; what an earlier kill left half written goes."""
        if not trainer.process.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        if trainer.state.epoch < 0:
            save_checkpoint(self._checkpoint(trainer), self.last)

    def epoch_end(self, trainer: Trainer) -> None:
        """Save what the epoch brought."""
        state = trainer.state
        if not trainer.process.is_main:
            return
        is_over = state.epoch + 1 == trainer.settings.epochs or state.stop
        if self.policy.is_final_only and not is_over:
            return
        # best.pt first: a run killed between the two writes repeats the epoch and writes the same best.pt again.
        checkpoint = self._checkpoint(trainer)
        if state.best_epoch in (state.epoch, -1):
            save_checkpoint(strip(checkpoint), self.best, half=self.policy.is_half)
        save_checkpoint(checkpoint, self.last)
        if self.policy.period > 0 and (state.epoch + 1) % self.policy.period == 0:
            with atomic_write(self.folder / f"epoch{state.epoch}.pt") as temporary:
                shutil.copyfile(self.last, temporary)

    def end(self, trainer: Trainer) -> None:
        """Leave a small last.pt: the weights to ship, no optimiser."""
        if trainer.process.is_main:
            save_checkpoint(strip(load_checkpoint(self.last)), self.last, half=self.policy.is_half)

    def _checkpoint(self, trainer: Trainer) -> Checkpoint:
        return Checkpoint(
            spec=self.spec,
            names=self.names,
            weights=trainer.model.state_dict(),
            ema=None if self.ema is None else self.ema.model.state_dict(),
            ema_updates=0 if self.ema is None else self.ema.updates,
            optimizer=trainer.optimizer.state_dict(),
            epoch=trainer.state.epoch,
            metrics=trainer.state.metrics,
            config=self.config,
            training_state=trainer.resumable_state(),
        )
