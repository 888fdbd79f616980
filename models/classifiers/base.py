"""What the networks for small pictures share: maps of the picture, then its classes from all of their values."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A network of one stack of maps and one head.

    Args:
        features: (B, C, H, W) to (B, C', H', W').
        classifier: (B, C' H' W') to (B, classes).
    """

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to logits (B, classes)."""
        y: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return y
