"""Where a training run ended: the best checkpoint, measured as val.py would."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.train_config import TrainConfig
from commands.train_recipe import told
from engine.evaluation.evaluator import Evaluation, Evaluator
from engine.training.trainer import TrainState
from tasks.task import Task
from utils.storage.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        best, last: Checkpoints.
        best_epoch: Counted from 0.
        epochs: Epochs trained.
        evaluation: Evaluation of the best checkpoint, in float32.
        final: Numbers of the last epoch's validation, by name; an epoch chosen on the images it is judged by looks
            better than it is, so compare methods by these.
        seconds: Seconds of the whole run in this process's life.
        images_per_second: While training steps ran.
        recipe: Choices that depend on the length of the run, by name, as in `RunRecipe`.
    """

    folder: Path
    best: Path
    last: Path
    best_epoch: int
    epochs: int
    evaluation: Evaluation
    final: dict[str, float]
    seconds: float
    images_per_second: float
    recipe: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
            "metrics": self.evaluation.to_dict(),
            "final": self.final,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "recipe": self.recipe,
            "checkpoints": {"best": str(self.best), "last": str(self.last)},
        }


def best_checkpoint(folder: Path) -> Path:
    """Return the best checkpoint of a run; the last one where `--nosave` kept no other."""
    best = folder / "weights/best.pt"
    return best if best.exists() else folder / "weights/last.pt"


def finish_run(
    folder: RunFolder,
    state: TrainState,
    *,
    task: Task,
    config: TrainConfig,
    evaluator: Evaluator,
    seconds: float,
) -> TrainResult:
    """Measure the best checkpoint of the run in float32, write its plots and result.json."""
    best = best_checkpoint(folder.path)
    network = task.load(best)
    on_batch = None if config.noplots else task.sample_images(folder.path, network.names)
    evaluation = evaluator.evaluate(network.model, on_batch=on_batch)
    result = TrainResult(
        folder=folder.path,
        best=best,
        last=folder.path / "weights/last.pt",
        best_epoch=state.best_epoch,
        epochs=state.epoch + 1,
        evaluation=evaluation,
        final=state.metrics,
        seconds=seconds,
        images_per_second=state.images / max(state.seconds, 1e-9),
        recipe=told(folder.path),
    )
    folder.write_result(result.to_dict())  # before the plots, which are worth less
    if not config.noplots:
        evaluation.save(folder.path)
    LOGGER.info("best model, epoch %d, in float32:\n%s", state.best_epoch + 1, evaluation.as_text())
    LOGGER.info("checkpoints: %s, %s\nresults in %s", best, result.last, folder.path)
    return result
