"""Hooks that evaluate the model after each epoch: validation, image weights, early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.evaluation.detection_scores import DetectionScores
from engine.evaluation.evaluator import Evaluation, Evaluator
from engine.training.distributed import share, wait_for_all
from engine.training.ema import Ema
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.loading.loader import Loader
from utils.datasets.loading.sampler import Weights
from utils.datasets.reading.labels import Labels


def class_counts(labels: Sequence[Labels], num_classes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count the boxes of each class in each image: (N, num_classes) int64."""
    counts = [np.bincount(boxes[:, 0].astype(np.int64), minlength=num_classes) for boxes in labels]
    return np.array(counts, np.int64).reshape(-1, num_classes)


def labels_to_class_weights(labels: Sequence[Labels], num_classes: int) -> Weights:
    """Return the inverse frequency of each class, (num_classes,), summing to 1; no boxes count as one box."""
    total = class_counts(labels, num_classes).sum(0)
    weights = 1.0 / np.maximum(total, 1)
    normalised: Weights = weights / weights.sum()
    return normalised


def image_weights(labels: Sequence[Labels], class_weights: Weights) -> Weights:
    """Return the sum of the class weights of each image's boxes, (N,).

    v5.0 passes class weights * (1 - mAP of the class)^2, so that images of badly learnt classes are drawn more often.
    If no image has a box of a class with positive weight, all images weigh the same.
    """
    counts = class_counts(labels, len(class_weights)).astype(np.float64)
    weights: Weights = counts @ np.asarray(class_weights, np.float64)
    return weights if weights.sum() > 0 else np.ones(len(labels))


LOGGER = logging.getLogger(__name__)


class ValidationHook(Hook):
    """Measures the network on the main process, after each epoch or only the last, and records the best epoch."""

    def __init__(self, evaluator: Evaluator, *, ema: Ema | None = None, is_final_only: bool = False) -> None:
        """Create the hook.

        Args:
            evaluator: Measures on the validation split.
            ema: Averaged weights to measure; None measures the trained ones.
            is_final_only: Whether to measure after the last epoch alone.
        """
        self.evaluator, self.ema, self.is_final_only = evaluator, ema, is_final_only
        self.latest: Evaluation | None = None

    def epoch_end(self, trainer: Trainer) -> None:
        """Evaluate the network and record the best epoch."""
        state = trainer.state
        is_last = state.epoch + 1 == trainer.settings.epochs or state.stop
        if self.is_final_only and not is_last:
            return
        if trainer.process.is_main and not self.evaluator.data.is_labelled:
            # Without labels nothing can be measured: all epochs are equal, and the last one counts as the best.
            state.judge(0.0)
            state.improved_epoch = state.epoch
        elif trainer.process.is_main:
            self.latest = self.evaluator.evaluate(trainer.model if self.ema is None else self.ema.model)
            state.metrics = self.latest.numbers()
            state.judge(self.latest.fitness)
        wait_for_all()
        state.metrics, state.best_fitness, state.best_epoch, state.improved_epoch = share(
            (state.metrics, state.best_fitness, state.best_epoch, state.improved_epoch)
        )


class ImageWeightsHook(Hook):
    """Draws images with many boxes of badly learnt classes more often (`--image-weights`).

    The weight of a class is its inverse frequency times (1 - mAP)^2, as in v5.0.
    """

    def __init__(self, *, validation: ValidationHook, index: LabelIndex) -> None:
        self.validation, self.index = validation, index
        self.class_weights = labels_to_class_weights(index.labels, len(index.names))
        self.per_class: list[float] = [0.0] * len(index.names)

    def before_training(self, trainer: Trainer) -> None:
        """Set the weights for the first epoch, or for the next one of a resumed run."""
        self._apply(trainer)

    def epoch_end(self, trainer: Trainer) -> None:
        """Set the weights by the newest mAP of each class."""
        if isinstance(self.validation.latest, DetectionScores):
            found = self.validation.latest.metrics.per_class
            known = [found.get(name, {}).get("AP", math.nan) for name in self.index.names]
            self.per_class = [0.0 if math.isnan(value) else value for value in known]
        self.per_class = share(self.per_class)
        self._apply(trainer)

    def _apply(self, trainer: Trainer) -> None:
        weights = self.class_weights * (1 - np.array(self.per_class)) ** 2
        assert isinstance(trainer.loader, Loader)
        trainer.loader.set_image_weights(image_weights(self.index.labels, weights))

    def state(self) -> dict[str, list[float]]:
        """Return the mAP of each class, on which the next epoch's order depends."""
        return {"per_class": self.per_class}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Restore the mAP of each class."""
        self.per_class = state.get("per_class", self.per_class)


class EarlyStoppingHook(Hook):
    """Stops training after `patience` epochs without a better model."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def epoch_end(self, trainer: Trainer) -> None:
        """Request a stop if the last `patience` epochs brought no better model."""
        state = trainer.state
        if self.patience > 0 and state.improved_epoch >= 0 and state.epoch - state.improved_epoch >= self.patience:
            LOGGER.info(
                "no better model for %d epochs (best: epoch %d); stopping, see --patience",
                self.patience,
                state.best_epoch + 1,
            )
            state.stop = True
