"""Evaluation of a trained classifier: accuracy, top-5 accuracy and confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.evaluation.classification_scores import Scores, picture_batches, score
from engine.evaluation.evaluate import StageClock
from models.classifiers import ClassifierSpec
from utils.datasets.class_names import compare_class_names
from utils.datasets.classes.pictures import PictureData, PictureSet
from utils.errors import ConfigError
from utils.progress import progress

Array = np.ndarray[Any, Any]

# Number of largest logits that may contain the right class; reported only if there are more classes.
_NUM_BEST = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierEvaluation:
    """Results of an evaluation.

    Attributes:
        scores: Accuracy and loss.
        top5: Share of images whose class has one of the five largest logits; None for five classes or fewer.
        confusion: Counts (K, K): rows are predicted classes, columns true ones.
        seconds: Time per stage: "inference", and "rest" for loading images, loss and counting.
    """

    scores: Scores
    top5: float | None
    confusion: Array
    seconds: dict[str, float]

    @property
    def class_counts(self) -> Array:
        """Number of images of each class, (K,)."""
        counts: Array = self.confusion.sum(0)
        return counts

    @property
    def class_accuracies(self) -> list[float | None]:
        """Accuracy on the images of each class, 0 to 1; None for a class without images."""
        right = self.confusion.diagonal()
        return [float(r / n) if n else None for r, n in zip(right, self.class_counts, strict=True)]


def evaluate_classifier(
    network: Callable[[Tensor], Tensor], pictures: PictureSet, *, spec: ClassifierSpec, batch_size: int
) -> ClassifierEvaluation:
    """Evaluate any function from normalised images (B, C, H, W) to logits (B, K).

    Args:
        network: Function to evaluate, on the images' device; a module in evaluation mode.
        pictures: Images to evaluate on.
        spec: Specification of the classifier; says how images are normalised.
        batch_size: Images per batch.
    """
    clock = StageClock.of("inference", "rest", device=pictures.images.device)
    watched = _Watched(network, clock)
    batches = picture_batches(pictures, spec, batch_size=batch_size)
    with clock.stage("rest"):
        scores = score(watched, progress(batches, description="evaluating"))
        best = torch.cat(watched.best)  # (N, 1 + 5)
        is_near = (best[:, 1:] == pictures.labels[:, None]).any(1)
        pairs = best[:, 0] * spec.num_classes + pictures.labels
        counts = torch.bincount(pairs, minlength=spec.num_classes**2).view(spec.num_classes, -1)
    clock.seconds["rest"] -= clock.seconds["inference"]
    return ClassifierEvaluation(
        scores=scores,
        top5=float(is_near.double().mean()) if spec.num_classes > _NUM_BEST else None,
        confusion=counts.cpu().numpy(),
        seconds=clock.seconds,
    )


class _Watched:
    """Runs a network, times it, and records its best classes.

    Attributes:
        best: Classes (B, 1 + 5) int64 of each batch: the predicted one, then those of the largest logits.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], clock: StageClock) -> None:
        self.best: list[Tensor] = []
        self._network, self._clock = network, clock

    def __call__(self, images: Tensor) -> Tensor:
        with self._clock.stage("inference"):
            logits = self._network(images)
        # Integer logits often tie; topk may then rank another class first than argmax, which defines the prediction.
        nearest = logits.topk(min(_NUM_BEST, logits.shape[1])).indices
        self.best.append(torch.cat((logits.argmax(1, keepdim=True), nearest), 1))
        return logits


def check_same_task(
    spec: ClassifierSpec, data: PictureData, *, names: Sequence[str], weights: str, name: str
) -> None:
    """Refuse data whose image size or number of classes differs from the classifier's.

    Different class names are logged as a warning.

    Args:
        spec: Specification of the classifier.
        data: Data set.
        names: Class names of the classifier, if it has any.
        weights, name: Names of the weights and the data, for messages.

    Raises:
        ConfigError: Image size or number of classes differ.
    """
    if (spec.image_chw, spec.num_classes) != (data.image_chw, len(data.names)):
        raise ConfigError(
            f"{weights} has {spec.num_classes} classes and takes images of {spec.image_chw}, but {name} has "
            f"{len(data.names)} and images of {data.image_chw}; use the data it was trained on"
        )
    compare_class_names(names, data.names, weights=weights, data=name)
