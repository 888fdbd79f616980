"""The seams of training. A method is added to training by a hook, never by a branch in the Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from utils.batch import TrainingBatch

if TYPE_CHECKING:
    from engine.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Step:
    """One forward pass, as `after_loss` sees it.

    Attributes:
        batch: The batch, on the training device, images as bytes.
        images: (B, C, H, W) what the network saw: normalised, scaled.
        outputs: What it gave: raw heads of a detector, logits (B, classes) of a classifier.
        loss: Scalar, not yet divided or scaled.
    """

    batch: TrainingBatch
    images: Tensor
    outputs: Any
    loss: Tensor


class Hook:
    """Does nothing at every seam; a hook overrides what it needs.

    Hooks run in the order they were given. One of strength zero must leave training bit-identical.
    """

    def before_training(self, trainer: Trainer) -> None:
        """Once, after a resumed state is restored."""

    def after_loss(self, trainer: Trainer, step: Step) -> Tensor:
        """Return the loss to differentiate: that of the step, or one that adds to it."""
        return step.loss

    def gradients_ready(self, trainer: Trainer) -> None:
        """Gradients are whole: unscaled, accumulated and reduced; not yet clipped."""

    def weights_updated(self, trainer: Trainer) -> None:
        """The optimiser has made a step."""

    def epoch_end(self, trainer: Trainer) -> None:
        """An epoch is over; on every process."""

    def end(self, trainer: Trainer) -> None:
        """Training is over, early or not."""

    def state(self) -> dict[str, Any]:
        """Plain data and tensors that a resumed run needs."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
