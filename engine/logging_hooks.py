"""Hooks that tell people how a run goes: the epoch line, results.csv and its plot, TensorBoard."""

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

from engine.hooks import Hook, Step
from engine.trainer import Trainer
from engine.watch import named_losses
from utils.batch import Batch
from utils.files import write_text
from utils.plots.batches import plot_labels
from utils.plots.results import plot_results

LOGGER = logging.getLogger(__name__)

# Pictures of the first training batches.
_BATCHES_DRAWN = 3

# Metrics that are told, by the words for them: in results.csv and TensorBoard, and in the line of an epoch.
DETECTION_COLUMNS = {"precision": "precision", "recall": "recall", "mAP_0.5": "AP50", "mAP_0.5:0.95": "AP"}
DETECTION_WORDS = {"P": "precision", "R": "recall", "mAP50": "AP50", "mAP": "AP"}


def result_row(trainer: Trainer, columns: Mapping[str, str]) -> dict[str, float]:
    """The numbers of one epoch, named as the columns of results.csv."""
    state = trainer.state
    row: dict[str, float] = {"epoch": state.epoch}
    row |= {f"train/{name}_loss": value for name, value in state.losses.items()}
    row |= {f"metrics/{column}": state.metrics.get(name, float("nan")) for column, name in columns.items()}
    row |= {f"lr/{group['name']}": group["lr"] for group in trainer.optimizer.param_groups}
    return row | state.extra


class EpochLineHook(Hook):
    """One line per epoch, with the time left."""

    def __init__(self, words: Mapping[str, str] = DETECTION_WORDS, *, digits: int = 3) -> None:
        """Args: `words` are of the metrics to tell, `digits` those behind their point."""
        self.words, self.digits = words, digits

    def before_training(self, trainer: Trainer) -> None:
        """Start the clock."""
        self._started, self._first = time.monotonic(), trainer.state.epoch + 1

    def epoch_end(self, trainer: Trainer) -> None:
        """Say how it went."""
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
    """results.csv after every epoch, results.png at the end."""

    def __init__(self, folder: Path, *, is_plotting: bool, columns: Mapping[str, str] = DETECTION_COLUMNS) -> None:
        self.path, self.is_plotting, self.columns = folder / "results.csv", is_plotting, columns
        self.rows: list[dict[str, float]] = []

    def epoch_end(self, trainer: Trainer) -> None:
        """Add the epoch's row."""
        self.rows.append(result_row(trainer, self.columns))
        if trainer.process.is_main:
            text = io.StringIO()
            writer = csv.DictWriter(text, fieldnames=list(self.rows[0]))
            writer.writeheader()
            # A number that was not measured leaves its cell empty.
            writer.writerows(
                {name: "" if value != value else value for name, value in row.items()} for row in self.rows
            )
            write_text(self.path, text.getvalue())

    def end(self, trainer: Trainer) -> None:
        """Draw the curves."""
        if trainer.process.is_main and self.is_plotting and self.rows:
            plot_results(self.path, self.path.with_suffix(".png"), best_epoch=trainer.state.best_epoch)

    def state(self) -> dict[str, list[dict[str, float]]]:
        """All rows: a resumed run writes the whole file again."""
        return {"rows": self.rows}

    def restore(self, state: dict[str, list[dict[str, float]]]) -> None:
        """Take them back."""
        self.rows = list(state.get("rows", []))


class TensorBoardHook(Hook):
    """Losses, metrics and learning rates, a histogram of every batch norm's gamma, a detector's first batches."""

    def __init__(
        self,
        folder: Path,
        *,
        names: tuple[str, ...],
        is_plotting: bool,
        columns: Mapping[str, str] = DETECTION_COLUMNS,
    ) -> None:
        self.folder, self.names, self.is_plotting, self.columns = folder, names, is_plotting, columns
        self._writer: SummaryWriter | None = None
        self._drawn = 0

    def before_training(self, trainer: Trainer) -> None:
        """Open the event file; pictures of a resumed run exist already."""
        if not trainer.process.is_main:
            return
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.state.epoch + 1)
        if trainer.state.epoch >= 0 or not self.is_plotting:
            self._drawn = _BATCHES_DRAWN

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        """Draw the first batches."""
        if self._writer is not None and self._drawn < _BATCHES_DRAWN and isinstance(step.batch, Batch):
            path = self.folder / f"train_batch{self._drawn}.jpg"
            plot_labels(step.batch, path, names=self.names)
            picture = cv2.imread(str(path))
            if picture is not None:
                self._writer.add_image(path.stem, np.ascontiguousarray(picture[..., ::-1]), 0, dataformats="HWC")
            self._drawn += 1
        return step.loss

    def epoch_end(self, trainer: Trainer) -> None:
        """Add the epoch's numbers and histograms."""
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
