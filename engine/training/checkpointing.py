"""Hooks that maintain the averaged weights and write checkpoints to disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine.training.ema import Ema
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from utils.config.cli import RESUME_LATEST
from utils.errors import CheckpointError
from utils.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, strip
from utils.storage.files import atomic_write
from utils.storage.run_folder import plain


def resumed_path(resume: str, project: str) -> Path:
    """Return the path of the last.pt that `--resume` names: the one given, or the newest run's in `project`.

    Raises:
        CheckpointError: No run in `project` has one.
    """
    if resume != RESUME_LATEST:
        return Path(resume)
    found = sorted(Path(project).glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"--resume: no run in {project} has weights/last.pt; give the path of one")
    return found[-1]


class EmaHook(Hook):
    """Updates the moving average of the weights after every optimiser step."""

    def __init__(self, model: nn.Module, *, total_updates: int, window: float | None = None) -> None:
        self.ema = Ema(model, total_updates=total_updates, window=window)

    def weights_updated(self, trainer: Trainer) -> None:
        """Move the average towards the current weights."""
        self.ema.update(trainer.model)


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """Choice of the checkpoints that a run writes.

    Attributes:
        period: Epochs between additional checkpoints (`epochN.pt`); 0 or less writes none.
        is_final_only: Write no checkpoint before the last epoch.
        is_half: Store the weights to ship (best.pt, and last.pt after training) in float16.
    """

    period: int = -1
    is_final_only: bool = False
    is_half: bool = True


class CheckpointHook(Hook):
    """Writes last.pt before training and after every epoch, and best.pt after every best validation so far."""

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
        """Create the hook.

        Args:
            folder: Folder of the checkpoints; created when training starts.
            spec: Description of the network, as plain data.
            names: Class names.
            config: Settings of the run.
            ema: Averaged weights, which are the ones to ship; None ships the raw weights.
            policy: Which checkpoints to write.
        """
        self.folder, self.spec, self.names = folder, spec, names
        self.config, self.ema, self.policy = plain(config), ema, policy

    @property
    def last(self) -> Path:
        """Path of the newest checkpoint."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """Path of the checkpoint with the best validation."""
        return self.folder / "best.pt"

    def before_training(self, trainer: Trainer) -> None:
        """Write a first last.pt, so that a run killed in its first epoch can resume; delete half-written files."""
        if not trainer.process.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink()
        if trainer.state.epoch < 0:
            save_checkpoint(self._checkpoint(trainer), self.last)

    def epoch_end(self, trainer: Trainer) -> None:
        """Write the checkpoints of this epoch."""
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
        """Reduce last.pt to the weights to ship, without the optimiser's state."""
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
