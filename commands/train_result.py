"""Where a training run ended: the best checkpoint, measured as val.py would."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from commands.train_config import TrainConfig
from engine.evaluation.evaluate import EvalSettings, Evaluation, evaluate
from engine.evaluation.evaluator import ready_predictor
from engine.evaluation.report import SamplePictures, metrics_table, result_of, save_evaluation
from engine.training.trainer import TrainState
from models.load import load_model
from utils.datasets.loading.loader import Loader
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
        seconds: Seconds of the whole run in this process's life.
        images_per_second: While training steps ran.
    """

    folder: Path
    best: Path
    last: Path
    best_epoch: int
    epochs: int
    evaluation: Evaluation
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        return {
            "best_epoch": self.best_epoch,
            "epochs": self.epochs,
            "metrics": result_of(self.evaluation),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "checkpoints": {"best": str(self.best), "last": str(self.last)},
        }


def best_checkpoint(folder: Path) -> Path:
    """Return the best checkpoint of a run; the last one where `--nosave` kept no other."""
    best = folder / "weights/best.pt"
    return best if best.exists() else folder / "weights/last.pt"


def finish_run(
    folder: RunFolder, state: TrainState, *, config: TrainConfig, loader: Loader, device: torch.device, seconds: float
) -> TrainResult:
    """Measure the best checkpoint of the run on `loader` in float32, write its plots and result.json."""
    best = best_checkpoint(folder.path)
    evaluation = _measure(best, folder, config=config, loader=loader, device=device)
    result = TrainResult(
        folder=folder.path,
        best=best,
        last=folder.path / "weights/last.pt",
        best_epoch=state.best_epoch,
        epochs=state.epoch + 1,
        evaluation=evaluation,
        seconds=seconds,
        images_per_second=state.images / max(state.seconds, 1e-9),
    )
    folder.write_result(result.to_dict())
    table = metrics_table(evaluation, names=loader.dataset.index.names)
    LOGGER.info("best model, epoch %d, in float32:\n%s", state.best_epoch + 1, table)
    LOGGER.info("checkpoints: %s, %s\nresults in %s", best, result.last, folder.path)
    return result


def _measure(
    weights: Path, folder: RunFolder, *, config: TrainConfig, loader: Loader, device: torch.device
) -> Evaluation:
    index = loader.dataset.index
    evaluation = evaluate(
        ready_predictor(load_model(weights).model, device),
        loader,
        index,
        settings=EvalSettings(single_cls=config.single_cls, channels_last=True),
        device=device,
        on_batch=None if config.noplots else SamplePictures(folder=folder.path, names=index.names),
    )
    if not config.noplots:
        save_evaluation(evaluation, folder.path, names=index.names)
    return evaluation
