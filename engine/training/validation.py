"""Hooks that evaluate the model after each epoch: validation, image weights, early stopping."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from engine.evaluation.evaluate import EvalSettings, Evaluation, evaluate
from engine.evaluation.predict import predictor
from engine.training.distributed import share, wait_for_all
from engine.training.ema import Ema
from engine.training.hooks import Hook
from engine.training.sync_bn import plain_batch_norms_
from engine.training.trainer import Trainer
from models.detector import Detector
from models.fuse import fuse
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.loading.loader import Loader
from utils.datasets.loading.sampler import Weights
from utils.datasets.reading.labels import Labels
from utils.metrics.coco import fitness


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
    """Measures the COCO mAP of the averaged weights, on the main process, after each epoch or only the last."""

    def __init__(
        self, *, ema: Ema, loader: Loader, index: LabelIndex, settings: EvalSettings, is_final_only: bool = False
    ) -> None:
        self.ema, self.loader, self.index = ema, loader, index
        self.settings, self.is_final_only = settings, is_final_only
        self.latest: Evaluation | None = None

    def epoch_end(self, trainer: Trainer) -> None:
        """Evaluate the averaged weights and record the best epoch."""
        state = trainer.state
        is_last = state.epoch + 1 == trainer.settings.epochs or state.stop
        if self.is_final_only and not is_last:
            return
        if trainer.process.is_main and not self.index.num_boxes:
            # Without boxes nothing can be measured: all epochs are equal, and the last one counts as the best.
            state.judge(0.0)
            state.improved_epoch = state.epoch
        elif trainer.process.is_main:
            self.latest = self._evaluate(trainer.settings.device)
            metrics = self.latest.metrics
            numbers = {**metrics.twelve(), "precision": metrics.precision, "recall": metrics.recall}
            state.metrics = {name: value for name, value in numbers.items() if not math.isnan(value)}
            state.judge(fitness(metrics))
        wait_for_all()
        state.metrics, state.best_fitness, state.best_epoch, state.improved_epoch = share(
            (state.metrics, state.best_fitness, state.best_epoch, state.improved_epoch)
        )

    def _evaluate(self, device: torch.device) -> Evaluation:
        model = self.ema.model
        assert isinstance(model, Detector)
        fused = fuse(model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        plain_batch_norms_(fused)
        return evaluate(predictor(fused), self.loader, self.index, settings=self.settings, device=device)


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
        if self.validation.latest is not None:
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
