"""The loss of classifiers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from engine.losses.detection import LossParts


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
