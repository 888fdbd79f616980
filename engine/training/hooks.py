"""Extension points of training: a method is added to training as a hook, never as a branch in the Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.datasets.loading.batch import TrainingBatch

if TYPE_CHECKING:
    from engine.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward pass, as passed to `after_loss`.

    Attributes:
        batch: Batch on the training device, images as bytes.
        images: Network input (B, C, H, W): normalised, and resized in multi-scale training.
        outputs: Network output: raw heads of a detector, logits (B, classes) of a classifier.
        loss: Scalar loss, not yet divided or scaled.
    """

    batch: TrainingBatch
    images: Tensor
    outputs: Any
    loss: Tensor


class Hook:
    """Base class of all hooks: each method does nothing, and a hook overrides those it needs.

    Hooks run in the order in which the Trainer got them. A hook of strength zero must leave training bit-identical.
    """

    def before_training(self, trainer: Trainer) -> None:
        """Run once before the first epoch, after the state of a resumed run is restored."""

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        """Return the loss to differentiate: the loss of the step, or one that adds a term to it."""
        return step.loss

    def gradients_ready(self, trainer: Trainer) -> None:
        """Run when the gradients are complete: unscaled, accumulated and reduced, but not yet clipped."""

    def weights_updated(self, trainer: Trainer) -> None:
        """Run after each optimiser step."""

    def epoch_end(self, trainer: Trainer) -> None:
        """Run after each epoch, on every process."""

    def end(self, trainer: Trainer) -> None:
        """Run once after the last epoch, even if training stopped early."""

    def state(self) -> dict[str, Any]:
        """Return the plain data and tensors that a resumed run needs."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what an earlier run's `state` returned."""
