"""How a classifier is judged: its loss, its accuracy, and the hook that measures after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.hooks import Hook
from engine.loss import LossParts
from engine.trainer import Trainer
from models.classifiers import ClassifierSpec
from utils.datasets.classification import PictureSet
from utils.datasets.picture_loader import Augment, Normalisation, PictureBatch, PictureLoader

# Pictures at once where nothing is learnt.
_BATCH = 500

# What is told of each epoch: names of numbers of `TrainState.metrics`, by the words for them.
ACCURACY_COLUMNS = {"accuracy": "accuracy", "loss": "loss"}


class ClassificationLoss:
    """Cross entropy of logits, mean over the batch."""

    names = ("class",)

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        """Args: `label_smoothing` is the share of each label that goes to all classes alike."""
        self.label_smoothing = label_smoothing

    def __call__(self, outputs: Tensor, targets: Tensor) -> LossParts:
        """The loss of logits (B, K) for classes (B,)."""
        loss = F.cross_entropy(outputs.float(), targets, label_smoothing=self.label_smoothing)
        return LossParts(total=loss, parts=loss.detach()[None])


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a classifier gets right.

    Attributes:
        accuracy: Share of pictures whose class has the largest logit, 0 to 1.
        loss: Mean cross entropy.
        count: Pictures.
    """

    accuracy: float
    loss: float
    count: int


@torch.no_grad()
def score(network: Callable[[Tensor], Tensor], batches: Iterable[PictureBatch]) -> Scores:
    """Judge anything that makes logits (B, K) of normalised pictures (B, C, H, W)."""
    sums: list[Tensor] = []  # they stay on the device, so that the host waits for it only at the end
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
    """Judge a network in evaluation mode, float32; its mode is left as it was.

    Args:
        model: The network.
        pictures: What to judge it on.
        spec: Says how pictures are normalised.
        device: Where the network lies; None for where its parameters are.
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
    """Batches normalised as `spec` says, on the pictures' device; see `PictureLoader`."""
    return PictureLoader(
        pictures,
        batch_size=batch_size,
        normalisation=Normalisation.of(spec.mean, spec.std, device=pictures.images.device),
        augment=augment,
        is_training=is_training,
        seed=seed,
    )


class AccuracyHook(Hook):
    """Accuracy on the test pictures after each epoch, and which epoch was the best."""

    def __init__(self, pictures: PictureSet, spec: ClassifierSpec) -> None:
        """Args: `pictures` lie on the network's device."""
        self.loader = picture_batches(pictures, spec)

    def epoch_end(self, trainer: Trainer) -> None:
        """Measure."""
        state = trainer.state
        scores = score(trainer.model.eval(), self.loader)
        state.metrics = {"accuracy": scores.accuracy, "loss": scores.loss}
        state.judge(scores.accuracy)
