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

from commands.classify_config import ClassifierConfig
from engine.evaluation.classification import check_same_task
from engine.evaluation.classification_scores import (
    ACCURACY_COLUMNS,
    AccuracyHook,
    ClassificationLoss,
    picture_batches,
)
from engine.training.checkpointing import CheckpointHook, SavePolicy, resumed_path
from engine.training.hooks import Hook
from engine.training.logging_hooks import EpochLineHook, ResultsHook, TensorBoardHook
from engine.training.optim import build_optimizer
from engine.training.resuming import resume_
from engine.training.schedule import Schedule
from engine.training.trainer import Trainer, TrainerSettings, TrainState
from models.classifiers import ClassifierSpec, build_classifier, load_classifier
from models.classifiers.load import logits_shape
from utils.config.cli import config_from_values
from utils.datasets.classes.known import load_pictures
from utils.datasets.classes.pictures import PictureData, channel_statistics
from utils.device import amp_dtype, memory_advice, seed_everything, select_device
from utils.errors import CheckpointError, ConfigError
from utils.storage.checkpoint import load_checkpoint
from utils.storage.run_folder import RunFolder


def read_pictures(config: ClassifierConfig) -> PictureData:
    """Return the images that the settings name."""
    return load_pictures(config.data, config.cache_dir or None)


def make_classifier(config: ClassifierConfig, data: PictureData) -> nn.Module:
    """Return the network that the settings name, with random weights of their seed or with those of a file.

    Raises:
        ConfigError: There is no such network, or the file's takes other images or knows other classes.
    """
    seed_everything(config.seed)
    if not config.weights:
        return build_classifier(config.model, num_classes=len(data.names), in_channels=data.image_chw[0])
    loaded = load_classifier(config.weights)
    weights, name = f"--weights {config.weights}", f"--data {config.data}"
    check_same_task(loaded.spec, data, names=loaded.names, weights=weights, name=name)
    return loaded.model


def classifier_spec(model: nn.Module, data: PictureData, *, name: str) -> ClassifierSpec:
    """Describe `model`, with the statistics of the training images as its normalisation.

    Args:
        model: The network, of any widths.
        data: Its images.
        name: Name of the network in `CLASSIFIERS`; empty for one that only code elsewhere describes.

    Raises:
        ConfigError: It is another network than its name says, or does not take these images.
    """
    if name:
        with torch.device("meta"):
            named = build_classifier(name, num_classes=len(data.names), in_channels=data.image_chw[0])
        if named.state_dict().keys() != model.state_dict().keys():
            raise ConfigError(
                f"--model {name} has other layers than the {type(model).__name__} to be trained; name that one, or "
                "give an empty name for a network of your own"
            )
    expected = (2, len(data.names))
    try:
        found = logits_shape(model, data.image_chw)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"--model {name}: no network for images of {data.image_chw} ({reason}); choose another"
        ) from error
    if found != expected:
        raise ConfigError(f"--model {name}: two images give logits of {found}, expected {expected}")
    mean, std = channel_statistics(data.train)
    return ClassifierSpec(name=name, num_classes=len(data.names), image_chw=data.image_chw, mean=mean, std=std)


# Materials belong to the interface: an example needs nothing else.
__all__ = ["ClassifierResult", "classifier_spec", "make_classifier", "read_pictures", "train_classifier"]

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        best, last: Checkpoints, float32.
        accuracies: On the test images after each epoch, 0 to 1.
        best_epoch: The first of the highest accuracy of those that count, from 0. It was chosen on the images it is
            judged by, so compare methods by the last epoch.
        seconds: Seconds of the whole run in this process's life.
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
        """Accuracy of best.pt."""
        return self.accuracies[self.best_epoch]

    @property
    def final_accuracy(self) -> float:
        """Accuracy of last.pt."""
        return self.accuracies[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
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
        data: Images to learn from, and images to be judged by.
        config: All settings; with `resume`, those of the resumed run count instead.
        hooks: Hooks of a method, made for `model`; they run before those of the engine, and get their state back in a
            resumed run.

    Raises:
        ConfigError: Settings, network and images do not fit each other.
        CheckpointError: The run to resume is complete or of another network.
        TrainingError: The loss is no number.
    """
    device = select_device(config.device)
    if config.resume:
        return _continue(model, data, config=config, hooks=hooks, device=device)
    amp_dtype(device, config.amp)  # refuses what the device lacks before anything is written
    spec = classifier_spec(model, data, name=config.model)
    folder = RunFolder.begin(config)
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
