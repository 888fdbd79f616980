"""Base class of the networks for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """A feature extractor and a head that classifies from the flattened feature maps.

    Args:
        features: Module that maps (B, C, H, W) to (B, C', H', W').
        classifier: Module that maps (B, C' H' W') to (B, classes).
    """

    def __init__(self, features: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, classes)."""
        y: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return y
