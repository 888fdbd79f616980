"""Evaluation of classifiers: accuracy, top-5 accuracy, cross entropy and confusion matrix."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.evaluation.detection_scores import MAX_CLASSES_SHOWN
from engine.evaluation.evaluator import StageClock
from engine.evaluation.predict import Predict
from utils.datasets.classes.loader import Normalisation, PictureBatch, PictureLoader
from utils.datasets.classes.pictures import PictureSet
from utils.plots.curves import plot_confusion

Array = np.ndarray[Any, Any]

# Number of largest logits that may contain the right class; reported only if there are more classes.
_NUM_BEST = 5
# Most classes whose confusion matrix is part of result.json.
_MOST_IN_MATRIX = 200


@dataclass(frozen=True, kw_only=True)
class ClassificationSet:
    """The labelled images of a split, for `Evaluator`.

    Attributes:
        pictures: Images and their classes.
        mean, std: Normalisation of the images, see `models.classifiers.ClassifierSpec`.
        batch_size: Images per step.
    """

    pictures: PictureSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int = 500
    _placed: dict[torch.device, PictureSet] = field(default_factory=dict, compare=False)

    is_labelled = True

    def few(self, count: int) -> ClassificationSet:
        """Return so many of the images, evenly spread; all where there are fewer, and for a count of 0."""
        return replace(self, pictures=self.pictures.spread(count), _placed={}) if count else self

    def framed(self, frame_hw: tuple[int, int] | None) -> ClassificationSet:
        """Return the same images, which have one size."""
        return self

    @property
    def advice(self) -> str:
        """Return the remedy if memory does not suffice."""
        return f"lower --batch-size (now {self.batch_size})"

    def start(self, network: Any, device: torch.device) -> None:
        """Do nothing: images are loaded in this process."""

    def batches(self, network: Any, device: torch.device) -> PictureLoader:
        """Return the normalised batches, in order, the same ones for every network."""
        if device not in self._placed:  # images in memory are copied to a GPU once
            self._placed[device] = self.pictures.to(device)
        normalisation = Normalisation.of(self.mean, self.std, device=device)
        return PictureLoader(self._placed[device], batch_size=self.batch_size, normalisation=normalisation)

    def predictor(self, network: Any, device: torch.device) -> Predict:
        """Return the function from images to logits; a module that lies elsewhere is copied to the device."""
        if isinstance(network, list | tuple):
            (network,) = network
        if not isinstance(network, nn.Module):
            return lambda images: network(images).to(device)
        if any(parameter.device != device for parameter in network.parameters()):
            network = copy.deepcopy(network).to(device)
        return lambda images: network(images.contiguous(memory_format=torch.channels_last))

    def scorer(self, clock: StageClock) -> ClassificationScorer:
        """Return a scorer that has seen nothing yet."""
        return ClassificationScorer(self.pictures.names, clock)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationScores:
    """Results of an evaluation.

    Attributes:
        names: Class names by id.
        accuracy: Share of images whose class has the largest logit, 0 to 1.
        loss: Mean cross entropy; NaN or infinite where logits are.
        top5: Share of images whose class has one of the five largest logits; None for five classes or fewer.
        confusion: Counts (K, K): rows are predicted classes, columns true ones.
        seconds: Time per stage: "preprocess", "inference", "metrics".
        images: Number of images evaluated.
    """

    names: tuple[str, ...]
    accuracy: float
    loss: float
    top5: float | None
    confusion: Array
    seconds: dict[str, float]
    images: int

    @property
    def is_finite(self) -> bool:
        """Whether the logits are numbers."""
        return math.isfinite(self.loss)

    @property
    def score(self) -> float:
        """Accuracy."""
        return self.accuracy

    @property
    def fitness(self) -> float:
        """Accuracy."""
        return self.accuracy

    @property
    def headline(self) -> dict[str, float]:
        """Accuracy alone."""
        return {"accuracy": self.accuracy}

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

    def numbers(self) -> dict[str, float]:
        """Return accuracy and loss."""
        return {"accuracy": self.accuracy, "loss": self.loss}

    def to_dict(self) -> dict[str, Any]:
        """Return shares from 0 to 1, counts of images, and seconds."""
        rows = zip(self.names, self.class_counts.tolist(), self.class_accuracies, strict=True)
        return {
            "accuracy": self.accuracy,
            "top5": self.top5,
            "loss": self.loss,
            "images": self.images,
            "per_class": [{"name": name, "images": count, "accuracy": share} for name, count, share in rows],
            "confusion": self.confusion.tolist() if len(self.names) <= _MOST_IN_MATRIX else None,
            "seconds": self.seconds,
        }

    def as_text(self, *, is_verbose: bool = False) -> str:
        """Format the totals in one line and, if `is_verbose` or at most 20 classes, one line for each class."""
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.4f}"
        lines = [f"accuracy {self.accuracy:.4f}{top5}, loss {self.loss:.4f} on {self.images} images"]
        if is_verbose or len(self.names) <= MAX_CLASSES_SHOWN:
            width = max(8, *map(len, self.names))
            for name, own, share in zip(self.names, self.class_counts, self.class_accuracies, strict=True):
                right = "none" if share is None else f"{share:.4f} right"
                lines.append(f"{name:>{width}} {own:8d} images, {right}")
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Plot the confusion matrix."""
        plot_confusion(self.confusion, folder / "confusion_matrix.png", names=self.names)


class ClassificationScorer:
    """Counts predicted and true classes; the counts stay on the device, so that the host waits for it only once."""

    def __init__(self, names: tuple[str, ...], clock: StageClock) -> None:
        self._names, self._clock = names, clock
        self._sums: list[Tensor] = []
        self._confusion: Tensor | None = None
        self._count = 0

    def add(self, batch: PictureBatch, outputs: Tensor) -> Tensor:
        """Return the logits (B, K) float32."""
        classes = len(self._names)
        with self._clock.stage("metrics"):
            logits = outputs.float()
            targets = batch.targets.to(logits.device)
            # Integer logits often tie; topk may then rank another class first than argmax, which is the prediction.
            predicted = logits.argmax(1)
            is_near = (logits.topk(min(_NUM_BEST, classes)).indices == targets[:, None]).any(1)
            loss = F.cross_entropy(logits, targets, reduction="sum")
            right = (predicted == targets).sum()
            self._sums.append(torch.stack((right.double(), loss.double(), is_near.sum().double())))
            counts = torch.bincount(predicted * classes + targets, minlength=classes**2)
            self._confusion = counts if self._confusion is None else self._confusion + counts
            self._count += len(batch)
        return logits

    def scores(self) -> ClassificationScores:
        """Score everything that was added, at least one batch."""
        assert self._confusion is not None
        classes = len(self._names)
        with self._clock.stage("metrics"):
            right, loss, near = torch.stack(self._sums).sum(0).tolist()
            confusion = self._confusion.view(classes, classes).cpu().numpy()
        return ClassificationScores(
            names=self._names,
            accuracy=right / self._count,
            loss=loss / self._count if math.isfinite(loss) else loss,
            top5=near / self._count if classes > _NUM_BEST else None,
            confusion=confusion,
            seconds=dict(self._clock.seconds),
            images=self._count,
        )
