"""The hooks that carry a run: the shadow weights, and the checkpoints on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from engine.ema import Ema
from engine.hooks import Hook
from engine.trainer import Trainer
from models.detector import Detector
from utils.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, strip
from utils.files import atomic_write
from utils.run_folder import plain


class EmaHook(Hook):
    """Keeps the moving average of the weights up to date."""

    def __init__(self, model: Detector, *, total_updates: int) -> None:
        self.ema = Ema(model, total_updates=total_updates)

    def weights_updated(self, trainer: Trainer) -> None:
        """Follow the model."""
        self.ema.update(trainer.model)


class CheckpointHook(Hook):
    """Writes last.pt before training and after every epoch, best.pt when a validation was the best so far."""

    def __init__(
        self, folder: Path, *, ema: Ema, names: tuple[str, ...], config: Any, save_period: int, is_final_only: bool
    ) -> None:
        self.folder, self.ema, self.names = folder, ema, names
        self.config, self.save_period, self.is_final_only = plain(config), save_period, is_final_only

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
        if self.is_final_only and not is_over:
            return
        # best.pt first: a run killed between the two writes repeats the epoch and writes the same best.pt again.
        checkpoint = self._checkpoint(trainer)
        if state.best_epoch in (state.epoch, -1):
            save_checkpoint(strip(checkpoint), self.best, half=True)
        save_checkpoint(checkpoint, self.last)
        if self.save_period > 0 and (state.epoch + 1) % self.save_period == 0:
            with atomic_write(self.folder / f"epoch{state.epoch}.pt") as temporary:
                shutil.copyfile(self.last, temporary)

    def end(self, trainer: Trainer) -> None:
        """Leave a small last.pt: averaged weights in half precision, no optimiser."""
        if trainer.process.is_main:
            save_checkpoint(strip(load_checkpoint(self.last)), self.last, half=True)

    def _checkpoint(self, trainer: Trainer) -> Checkpoint:
        return Checkpoint(
            spec=trainer.model.spec.to_dict(),
            names=self.names,
            weights=trainer.model.state_dict(),
            ema=self.ema.model.state_dict(),
            ema_updates=self.ema.updates,
            optimizer=trainer.optimizer.state_dict(),
            epoch=trainer.state.epoch,
            metrics=trainer.state.metrics,
            config=self.config,
            training_state=trainer.resumable_state(),
        )
