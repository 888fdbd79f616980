"""Hooks that look at the model after each epoch: validation, image weights, early stopping."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch

from engine.distributed import share, wait_for_all
from engine.ema import Ema
from engine.evaluate import EvalSettings, Evaluation, evaluate
from engine.hooks import Hook
from engine.predict import predictor
from engine.sync_bn import plain_batch_norms_
from engine.trainer import Trainer
from models.detector import Detector
from models.fuse import fuse
from utils.datasets.image_weights import image_weights, labels_to_class_weights
from utils.datasets.index import LabelIndex
from utils.datasets.loader import Loader
from utils.metrics.coco import fitness

LOGGER = logging.getLogger(__name__)


class ValidationHook(Hook):
    """COCO mAP of the averaged weights, on the main process, after each epoch or only the last."""

    def __init__(
        self, *, ema: Ema, loader: Loader, index: LabelIndex, settings: EvalSettings, is_final_only: bool = False
    ) -> None:
        self.ema, self.loader, self.index = ema, loader, index
        self.settings, self.is_final_only = settings, is_final_only
        self.latest: Evaluation | None = None

    def epoch_end(self, trainer: Trainer) -> None:
        """Evaluate, and remember the best epoch."""
        state = trainer.state
        is_last = state.epoch + 1 == trainer.settings.epochs or state.stop
        if self.is_final_only and not is_last:
            return
        if trainer.process.is_main and not self.index.num_boxes:
            # Nothing can be measured: all epochs are equal, the last one is kept.
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
    """--image-weights: images with many boxes of badly learnt classes come more often.

    Weight of a class: its rarity times (1 - mAP)^2, as in v5.0.
    """

    def __init__(self, *, validation: ValidationHook, index: LabelIndex) -> None:
        self.validation, self.index = validation, index
        self.class_weights = labels_to_class_weights(index.labels, len(index.names))
        self.per_class: list[float] = [0.0] * len(index.names)

    def before_training(self, trainer: Trainer) -> None:
        """Weights for the first epoch, or those a resumed run had."""
        self._apply(trainer)

    def epoch_end(self, trainer: Trainer) -> None:
        """Take over the newest mAP of each class."""
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
        """The mAP that the next epoch's order depends on."""
        return {"per_class": self.per_class}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Take it back."""
        self.per_class = state.get("per_class", self.per_class)


class EarlyStoppingHook(Hook):
    """Ends the run when `patience` epochs brought no better model."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def epoch_end(self, trainer: Trainer) -> None:
        """Decide."""
        state = trainer.state
        if self.patience > 0 and state.improved_epoch >= 0 and state.epoch - state.improved_epoch >= self.patience:
            LOGGER.info(
                "no better model for %d epochs (best: epoch %d); stopping, see --patience",
                self.patience,
                state.best_epoch + 1,
            )
            state.stop = True
