"""Small classifiers of the papers on pruning that torchvision does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.

    With ReLU, maximum pooling and full connections between the two convolutions, as is usual today.

    Args:
        num_classes: Outputs.
        in_channels: Of the images, which are padded from 28 x 28 to 32 x 32.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, 28, 28) to logits (B, classes)."""
        y: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return y


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3x3 convolution, whose output goes beside its input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C + growth, H, W)."""
        return torch.cat((x, self.conv(self.relu(self.norm(x)))), 1)


class DenseNetCifar(nn.Module):
    """Huang et al., "Densely Connected Convolutional Networks", CVPR 2017: the CIFAR network without bottlenecks.

    Args:
        num_classes: Outputs.
        depth: Layers with weights, 3 n + 4: 40 is DenseNet-40.
        growth: Channels each layer adds, k in the paper.
    """

    def __init__(self, *, num_classes: int = 10, depth: int = 40, growth: int = 12) -> None:
        super().__init__()
        if depth < 7 or (depth - 4) % 3:
            raise ValueError(f"depth is {depth}, expected 3 n + 4 of at least 7, such as 40")
        channels = 16
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for block in range(3):
            if block:
                layers.append(_transition(channels))
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to logits (B, classes)."""
        y: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return y


def _transition(channels: int) -> nn.Sequential:
    """Between blocks: the same channels at half the size."""
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)
    )
