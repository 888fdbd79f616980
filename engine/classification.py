"""One training of a classifier, from settings to result, with the Trainer and the hooks of detectors."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engine.checkpointing import CheckpointHook, SavePolicy, resumed_path
from engine.classifier_config import ClassifierConfig
from engine.classifier_materials import classifier_spec, make_classifier, read_pictures
from engine.classifier_scores import ACCURACY_COLUMNS, AccuracyHook, ClassificationLoss, picture_batches
from engine.hooks import Hook
from engine.logging_hooks import EpochLineHook, ResultsHook, TensorBoardHook
from engine.optim import build_optimizer
from engine.resuming import resume_
from engine.schedule import Schedule
from engine.trainer import Trainer, TrainerSettings, TrainState
from models.classifiers import ClassifierSpec
from utils.checkpoint import load_checkpoint
from utils.cli import config_from_values
from utils.datasets.classification import PictureData
from utils.device import amp_dtype, memory_advice, select_device
from utils.errors import CheckpointError
from utils.run_folder import RunFolder

# Materials belong to the interface: an example needs nothing else.
__all__ = ["ClassifierResult", "classifier_spec", "make_classifier", "read_pictures", "train_classifier"]

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        best, last: Checkpoints, float32.
        accuracies: On the test pictures after each epoch, 0 to 1.
        best_epoch: The first of the highest accuracy of those that count, from 0. It was chosen on the pictures it is
            judged by, so compare methods by the last epoch.
        seconds: Of the whole run in this process's life.
        images_per_second: While training steps ran.
    """

    folder: Path
    best: Path
    last: Path
    accuracies: tuple[float, ...]
    best_epoch: int
    seconds: float
    images_per_second: float

    @property
    def best_accuracy(self) -> float:
        """Of best.pt."""
        return self.accuracies[self.best_epoch]

    @property
    def final_accuracy(self) -> float:
        """Of last.pt."""
        return self.accuracies[-1]

    def to_dict(self) -> dict[str, Any]:
        """The content of result.json."""
        return {
            "best_accuracy": self.best_accuracy,
            "final_accuracy": self.final_accuracy,
            "best_epoch": self.best_epoch,
            "epochs": len(self.accuracies),
            "accuracies": list(self.accuracies),
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "checkpoints": {"best": str(self.best), "last": str(self.last)},
        }


def train_classifier(
    model: nn.Module, data: PictureData, *, config: ClassifierConfig, hooks: Sequence[Hook] = ()
) -> ClassifierResult:
    """Train, measure after each epoch, and write the run folder.

    Args:
        model: Trained in place; it ends with the weights of the last epoch, on the device of the run, in evaluation
            mode.
        data: What it learns, and what it is judged by.
        config: All settings; with `resume`, those of the resumed run count instead.
        hooks: Of a method, made for `model`; they run before those of the engine, and a resumed run gives them their
            state back.

    Raises:
        ConfigError: Settings, network and pictures do not fit each other.
        CheckpointError: The run to resume is complete or of another network.
        TrainingError: The loss is no number.
    """
    device = select_device(config.device)
    if config.resume:
        return _continue(model, data, config=config, hooks=hooks, device=device)
    amp_dtype(device, config.amp)  # refuses what the device lacks before anything is written
    spec = classifier_spec(model, data, name=config.model)
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    folder.write_config(config)
    LOGGER.info("run folder %s", folder.path)
    return _Run(config, spec=spec, folder=folder, device=device).train(model, data, hooks)


def _continue(
    model: nn.Module, data: PictureData, *, config: ClassifierConfig, hooks: Sequence[Hook], device: torch.device
) -> ClassifierResult:
    """Go on with the run that `config.resume` names, under its own settings."""
    path = resumed_path(config.resume, config.project)
    checkpoint, folder = load_checkpoint(path), RunFolder(path=path.parent.parent)
    spec = ClassifierSpec.from_dict(checkpoint.spec, where=f"weights {path}")
    resumed = replace(config_from_values(type(config), checkpoint.config, where=str(path)), device=config.device)
    is_trained = checkpoint.optimizer is None
    if is_trained and (folder.path / "result.json").exists():
        raise CheckpointError(f"{path}: this run is complete; to train on from it use --weights {path}")
    try:
        model.load_state_dict(checkpoint.weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: of another network ({reason}); give the one that was trained") from error
    LOGGER.info("resuming %s after epoch %d of %d", folder.path, checkpoint.epoch + 1, resumed.epochs)
    run = _Run(resumed, spec=spec, folder=folder, device=device)
    if is_trained:  # killed between its last epoch and its result
        model.to(device).eval()
        return run.finish(TrainState(), seconds=0.0)
    return run.train(model, data, hooks, restore_=partial(resume_, checkpoint=checkpoint, where=str(path)))


class _Run:
    """Builds the parts of one run and joins them."""

    def __init__(
        self, config: ClassifierConfig, *, spec: ClassifierSpec, folder: RunFolder, device: torch.device
    ) -> None:
        self.config, self.spec, self.folder, self.device = config, spec, folder, device

    def train(
        self,
        model: nn.Module,
        data: PictureData,
        hooks: Sequence[Hook],
        *,
        restore_: Callable[[Trainer], None] | None = None,
    ) -> ClassifierResult:
        """Train to the last epoch, from the first or after that of a checkpoint."""
        started = time.perf_counter()
        with memory_advice(f"lower --batch-size (now {self.config.batch_size})"):
            model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            trainer = self._trainer(model, data)
            trainer.hooks = [*hooks, *self._own_hooks(data)]
            if restore_ is not None:
                restore_(trainer)
            state = trainer.fit()
        model.eval()
        return self.finish(state, seconds=time.perf_counter() - started)

    def finish(self, state: TrainState, *, seconds: float) -> ClassifierResult:
        """Write the result, of what the run's files hold."""
        weights = self.folder.path / "weights"
        with (self.folder.path / "results.csv").open(newline="", encoding="utf-8") as file:
            accuracies = tuple(float(row["metrics/accuracy"]) for row in csv.DictReader(file))
        result = ClassifierResult(
            folder=self.folder.path,
            best=weights / "best.pt",
            last=weights / "last.pt",
            accuracies=accuracies,
            best_epoch=load_checkpoint(weights / "best.pt").epoch,
            seconds=seconds,
            images_per_second=state.images / max(state.seconds, 1e-9),
        )
        self.folder.write_result(result.to_dict())
        LOGGER.info(
            "accuracy %.4f after the last epoch, %.4f after epoch %d, the best; results in %s",
            result.final_accuracy,
            result.best_accuracy,
            result.best_epoch + 1,
            result.folder,
        )
        return result

    def _trainer(self, model: nn.Module, data: PictureData) -> Trainer:
        config, hyp = self.config, self.config.hyp()
        loader = picture_batches(
            data.train.to(self.device),
            self.spec,
            batch_size=config.batch_size,
            augment=config.augment,
            is_training=True,
            seed=config.seed,
        )
        return Trainer(
            model,
            loss=ClassificationLoss(label_smoothing=config.label_smoothing),
            optimizer=build_optimizer(
                config.optimizer, model, lr=hyp.lr0, momentum=hyp.momentum, weight_decay=hyp.weight_decay
            ),
            schedule=Schedule(
                name=config.schedule,
                hyp=hyp,
                epochs=config.epochs,
                batches=len(loader),
                accumulate=1,
                least_warmup=1,
                milestones=config.milestones,
            ),
            loader=loader,
            settings=TrainerSettings(
                epochs=config.epochs,
                device=self.device,
                autocast=amp_dtype(self.device, config.amp),
                seed=config.seed,
            ),
        )

    def _own_hooks(self, data: PictureData) -> list[Hook]:
        folder = self.folder.path
        return [
            AccuracyHook(data.test.to(self.device), self.spec),
            EpochLineHook(ACCURACY_COLUMNS, digits=4),
            ResultsHook(folder, is_plotting=not self.config.noplots, columns=ACCURACY_COLUMNS),
            TensorBoardHook(folder, names=data.names, is_plotting=False, columns=ACCURACY_COLUMNS),
            CheckpointHook(
                folder / "weights",
                spec=self.spec.to_dict(),
                names=data.names,
                config=self.config,
                ema=None,
                policy=SavePolicy(is_half=False),
            ),
        ]
