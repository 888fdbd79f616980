"""Loss and accuracy of a classifier, and the hook that measures them after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.losses.detection import LossParts
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from models.classifiers import ClassifierSpec
from utils.config.choices import Augment
from utils.datasets.classes.loader import Normalisation, PictureBatch, PictureLoader
from utils.datasets.classes.pictures import PictureSet

# Images per batch when evaluating.
_BATCH = 500

# Metrics reported for each epoch: keys of `TrainState.metrics`, by their label.
ACCURACY_COLUMNS = {"accuracy": "accuracy", "loss": "loss"}


class ClassificationLoss:
    """Cross entropy of logits, mean over the batch."""

    names = ("class",)

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Create the loss.

        Args:
            label_smoothing: Share of each label that is spread evenly over all classes, 0 to 1.
        """
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossParts:
        """Compute the loss of logits (B, K) for classes (B,)."""
        loss = F.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing)
        return LossParts(total=loss, parts=loss.detach()[None])


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracy and loss of a classifier.

    Attributes:
        accuracy: Share of images whose class has the largest logit, 0 to 1.
        loss: Mean cross entropy.
        count: Number of images.
    """

    accuracy: float
    loss: float
    count: int


@torch.no_grad()
def score(network: Callable[[Tensor], Tensor], batches: Iterable[PictureBatch]) -> Scores:
    """Compute accuracy and loss of any function from normalised images (B, C, H, W) to logits (B, K)."""
    sums: list[Tensor] = []  # kept on the device, so that the host waits for it only at the end
    count = 0
    for batch in batches:
        logits = network(batch.normalised().contiguous(memory_format=torch.channels_last)).float()
        right = (logits.argmax(1) == batch.targets).sum()
        loss = F.cross_entropy(logits, batch.targets, reduction="sum")
        sums.append(torch.stack((right.double(), loss.double())))
        count += len(batch)
    right_sum, loss_sum = torch.stack(sums).sum(0).tolist()
    return Scores(accuracy=right_sum / count, loss=loss_sum / count, count=count)


def score_classifier(
    model: nn.Module, pictures: PictureSet, *, spec: ClassifierSpec, device: torch.device | None = None
) -> Scores:
    """Compute accuracy and loss of a network in evaluation mode and float32, then restore its mode.

    Args:
        model: Classifier.
        pictures: Images to evaluate on.
        spec: Specification of the classifier; says how images are normalised.
        device: Device of the network; None for that of its first parameter.
    """
    device = device or next(model.parameters()).device
    was_training = model.training
    result = score(model.eval(), picture_batches(pictures.to(device), spec))
    model.train(was_training)
    return result


def picture_batches(
    pictures: PictureSet,
    spec: ClassifierSpec,
    *,
    batch_size: int = _BATCH,
    augment: Augment = "none",
    is_training: bool = False,
    seed: int = 0,
) -> PictureLoader:
    """Build a loader of batches normalised as `spec` says, on the images' device; see `PictureLoader`."""
    return PictureLoader(
        pictures,
        batch_size=batch_size,
        normalisation=Normalisation.of(spec.mean, spec.std, device=pictures.images.device),
        augment=augment,
        is_training=is_training,
        seed=seed,
    )


class AccuracyHook(Hook):
    """Measures the accuracy on the test images after each epoch, and records the best epoch."""

    def __init__(self, pictures: PictureSet, spec: ClassifierSpec) -> None:
        """Create the hook.

        Args:
            pictures: Test images, on the network's device.
            spec: Specification of the classifier.
        """
        self.loader = picture_batches(pictures, spec)

    def epoch_end(self, trainer: Trainer) -> None:
        """Measure accuracy and loss, and record the best epoch."""
        state = trainer.state
        scores = score(trainer.model.eval(), self.loader)
        state.metrics = {"accuracy": scores.accuracy, "loss": scores.loss}
        state.judge(scores.accuracy)
