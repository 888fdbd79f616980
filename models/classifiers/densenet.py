"""DenseNet for 32 x 32 images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.classifiers.base import Classifier
from models.classifiers.initial import initialise_


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose output is concatenated to the layer's input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C + growth, H, W)."""
        return torch.cat((x, self.conv(self.relu(self.norm(x)))), 1)


class DenseNetCifar(Classifier):
    """DenseNet for CIFAR, without bottlenecks.

    Huang et al., "Densely Connected Convolutional Networks", CVPR 2017.

    Args:
        num_classes: Number of outputs.
        in_channels: Image channels.
        depth: Layers with weights, 3 n + 4: 40 is DenseNet-40.
        growth: Channels that each layer adds, k in the paper.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, depth: int = 40, growth: int = 12) -> None:
        if depth < 7 or (depth - 4) % 3:
            raise ValueError(f"depth is {depth}, expected 3 n + 4 of at least 7, such as 40")
        channels = 16
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for block in range(3):
            if block:
                layers.append(_transition(channels))
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        super().__init__(nn.Sequential(*layers), nn.Linear(channels, num_classes))
        initialise_(self)


def _transition(channels: int) -> nn.Sequential:
    """Build the layers between two blocks: same channels, half the size."""
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)
    )
