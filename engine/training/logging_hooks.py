"""Hooks that report progress: a line per epoch, results.csv and its plot, TensorBoard."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from engine.training.hooks import Hook, Step
from engine.training.trainer import Trainer
from engine.training.watch import named_losses
from utils.datasets.loading.batch import Batch
from utils.plots.batches import plot_labels
from utils.plots.results import plot_results
from utils.storage.files import write_text

LOGGER = logging.getLogger(__name__)

# Number of training batches to draw, from the first one on.
_BATCHES_DRAWN = 3


def result_row(trainer: Trainer, columns: Mapping[str, str]) -> dict[str, float]:
    """Return the losses, metrics and learning rates of the current epoch by column of results.csv."""
    state = trainer.state
    row: dict[str, float] = {"epoch": state.epoch}
    row |= {f"train/{name}_loss": value for name, value in state.losses.items()}
    row |= {f"metrics/{column}": state.metrics.get(name, float("nan")) for column, name in columns.items()}
    row |= {f"lr/{group['name']}": group["lr"] for group in trainer.optimizer.param_groups}
    return row | state.extra


class EpochLineHook(Hook):
    """Logs one line per epoch, with the time left."""

    def __init__(self, words: Mapping[str, str], *, digits: int) -> None:
        """Create the hook.

        Args:
            words: Names of the metrics to log, by their label in the line.
            digits: Number of decimals.
        """
        self.words, self.digits = words, digits

    def before_training(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._started, self._first = time.monotonic(), trainer.state.epoch + 1

    def epoch_end(self, trainer: Trainer) -> None:
        """Log the losses, the metrics, the speed and the time left."""
        state = trainer.state
        if not trainer.process.is_main:
            return
        done, left = state.epoch + 1 - self._first, trainer.settings.epochs - state.epoch - 1
        minutes = (time.monotonic() - self._started) / done * left / 60
        known = {word: state.metrics[name] for word, name in self.words.items() if name in state.metrics}
        told = " ".join(f"{word} {number:.{self.digits}f}" for word, number in known.items())
        LOGGER.info(
            "epoch %d/%d  %s%s%s  %.0f img/s  %.1f min left",
            state.epoch + 1,
            trainer.settings.epochs,
            named_losses(state.losses),
            f"  {told}" if told else "",  # nothing is measured with --notest
            " *" if state.best_epoch == state.epoch else "",
            state.images / max(state.seconds, 1e-9),
            minutes,
        )


class ResultsHook(Hook):
    """Writes results.csv after every epoch and results.png at the end."""

    def __init__(self, folder: Path, *, is_plotting: bool, columns: Mapping[str, str]) -> None:
        self.path, self.is_plotting, self.columns = folder / "results.csv", is_plotting, columns
        self.rows: list[dict[str, float]] = []

    def epoch_end(self, trainer: Trainer) -> None:
        """Add a row for this epoch, and rewrite results.csv."""
        self.rows.append(result_row(trainer, self.columns))
        if trainer.process.is_main:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
            writer.writeheader()
            # A value that was not measured leaves its cell empty.
            writer.writerows(
                {name: "" if value != value else value for name, value in row.items()} for row in self.rows
            )
            write_text(self.path, text.getvalue())

    def end(self, trainer: Trainer) -> None:
        """Plot the curves."""
        if trainer.process.is_main and self.is_plotting and self.rows:
            plot_results(self.path, self.path.with_suffix(".png"), best_epoch=trainer.state.best_epoch)

    def state(self) -> dict[str, list[dict[str, float]]]:
        """Return all rows, since a resumed run rewrites the whole file."""
        return {"rows": self.rows}

    def restore(self, state: dict[str, list[dict[str, float]]]) -> None:
        """Restore the rows of earlier epochs."""
        self.rows = list(state.get("rows", []))


class TensorBoardHook(Hook):
    """Logs losses, metrics, learning rates, histograms of batch-norm gammas, and a detector's first batches."""

    def __init__(
        self,
        folder: Path,
        *,
        names: tuple[str, ...],
        is_plotting: bool,
        columns: Mapping[str, str],
    ) -> None:
        self.folder, self.names, self.is_plotting, self.columns = folder, names, is_plotting, columns
        self._writer: SummaryWriter | None = None
        self._drawn = 0

    def before_training(self, trainer: Trainer) -> None:
        """Open the event file; a resumed run has drawn its first batches already."""
        if not trainer.process.is_main:
            return
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.state.epoch + 1)
        if trainer.state.epoch >= 0 or not self.is_plotting:
            self._drawn = _BATCHES_DRAWN

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        """Draw the first training batches."""
        if self._writer is not None and self._drawn < _BATCHES_DRAWN and isinstance(step.batch, Batch):
            path = self.folder / f"train_batch{self._drawn}.jpg"
            plot_labels(step.batch, path, names=self.names)
            picture = cv2.imread(str(path))
            if picture is not None:
                self._writer.add_image(path.stem, np.ascontiguousarray(picture[..., ::-1]), 0, dataformats="HWC")
            self._drawn += 1
        return step.loss

    def epoch_end(self, trainer: Trainer) -> None:
        """Add the scalars and histograms of this epoch."""
        if self._writer is None:
            return
        epoch = trainer.state.epoch
        for name, value in result_row(trainer, self.columns).items():
            if name != "epoch" and value == value:
                self._writer.add_scalar(name, value, epoch)
        gammas = {
            name: module.weight.detach().float().cpu()
            for name, module in trainer.model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }
        for name, gamma in gammas.items():
            self._writer.add_histogram(f"gamma/{name}", gamma, epoch)
        if gammas:
            self._writer.add_histogram("gamma/all", torch.cat(list(gammas.values())), epoch)
        self._writer.flush()

    def end(self, trainer: Trainer) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
