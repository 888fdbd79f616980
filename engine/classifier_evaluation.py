"""What a trained classifier gets right, and what it takes for what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.classifier_scores import Scores, picture_batches, score
from engine.evaluate import StageClock
from models.classifiers import ClassifierSpec
from utils.datasets.class_names import compare_class_names
from utils.datasets.classification import PictureData, PictureSet
from utils.errors import ConfigError
from utils.progress import progress

Array = np.ndarray[Any, Any]

# Of the largest logits, one of which is the right class: told where there are more classes than that.
_NUM_BEST = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierEvaluation:
    """What came out.

    Attributes:
        scores: Accuracy and loss.
        top5: Share of pictures whose class has one of the five largest logits; None for five classes or fewer.
        confusion: (K, K) counts, rows predicted, columns true.
        seconds: Spent per stage: inference, and the rest: pictures, loss and counting.
    """

    scores: Scores
    top5: float | None
    confusion: Array
    seconds: dict[str, float]

    @property
    def class_counts(self) -> Array:
        """Pictures of each class (K,)."""
        counts: Array = self.confusion.sum(0)
        return counts

    @property
    def class_accuracies(self) -> list[float | None]:
        """Share of each class's pictures that are told right; None for a class without pictures."""
        right = self.confusion.diagonal()
        return [float(r / n) if n else None for r, n in zip(right, self.class_counts, strict=True)]


def evaluate_classifier(
    network: Callable[[Tensor], Tensor], pictures: PictureSet, *, spec: ClassifierSpec, batch_size: int
) -> ClassifierEvaluation:
    """Judge anything that makes logits (B, K) of normalised pictures (B, C, H, W).

    Args:
        network: Where the pictures lie, in evaluation mode.
        pictures: What to judge it on.
        spec: Says how pictures are normalised.
        batch_size: Pictures at once.
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
    """A network whose answers are kept and whose time is taken.

    Attributes:
        best: Per batch (B, 1 + 5): the class it predicts, then those of the largest logits.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], clock: StageClock) -> None:
        self.best: list[Tensor] = []
        self._network, self._clock = network, clock

    def __call__(self, images: Tensor) -> Tensor:
        with self._clock.stage("inference"):
            logits = self._network(images)
        # Integers tie often, and the best of topk is then another than that of argmax, which counts.
        nearest = logits.topk(min(_NUM_BEST, logits.shape[1])).indices
        self.best.append(torch.cat((logits.argmax(1, keepdim=True), nearest), 1))
        return logits


def check_same_task(
    spec: ClassifierSpec, data: PictureData, *, names: Sequence[str], weights: str, name: str
) -> None:
    """Refuse pictures of another size, or of another number of classes, than a classifier is for.

    Other words for the classes are told of.

    Args:
        spec: Of the classifier.
        data: The pictures.
        names: Of the classifier's classes, where it has any.
        weights, name: What the user calls the two.

    Raises:
        ConfigError: They are.
    """
    if (spec.image_chw, spec.num_classes) != (data.image_chw, len(data.names)):
        raise ConfigError(
            f"{weights} tells {spec.num_classes} classes of {spec.image_chw} apart but {name} has "
            f"{len(data.names)} of {data.image_chw}; use the data it was trained on"
        )
    compare_class_names(names, data.names, weights=weights, data=name)
