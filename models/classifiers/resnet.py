"""Residual networks for 32 x 32 images: ResNet, and PreResNet with norms before convolutions."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.classifiers.base import Classifier
from models.classifiers.initial import initialise_

_WIDTHS = (16, 32, 64)
# A bottleneck has four times as many output channels as its 3x3 convolution.
_EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, added to the input."""

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == width
            else nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, width, H / stride, W / stride)."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        z: Tensor = self.relu(y + self.shortcut(x))
        return z


class PreBottleneck(nn.Module):
    """Norm, ReLU and convolution three times (1x1, 3x3, 1x1), added to the input."""

    def __init__(self, in_channels: int, width: int, *, stride: int) -> None:
        super().__init__()
        out_channels = width * _EXPANSION
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, 4 width, H / stride, W / stride)."""
        y = self.conv1(self.relu(self.norm1(x)))
        y = self.conv2(self.relu(self.norm2(y)))
        z: Tensor = self.conv3(self.relu(self.norm3(y))) + self.shortcut(x)
        return z


class ResNetCifar(Classifier):
    """ResNet for CIFAR.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. Where the width doubles, the paper pads
    shortcuts with zero channels; ours are 1x1 convolutions (its option B), because channels without a producer
    cannot be traced and pruned.

    Args:
        num_classes: Number of outputs.
        in_channels: Image channels.
        depth: Layers with weights, not counting shortcuts, 6 n + 2: 20, 32, 44, 56, 110.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, depth: int = 20) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}, expected 6 n + 2 of at least 8, such as 20")
        first, last = _WIDTHS[0], _WIDTHS[-1]
        features = nn.Sequential(
            nn.Conv2d(in_channels, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            *_stages(BasicBlock, (depth - 2) // 6, in_channels=first, expansion=1),
            nn.AdaptiveAvgPool2d(1),
        )
        super().__init__(features, nn.Linear(last, num_classes))
        initialise_(self)


class PreResNetCifar(Classifier):
    """PreResNet for CIFAR: bottlenecks with norms before convolutions.

    He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.

    Args:
        num_classes: Number of outputs.
        in_channels: Image channels.
        depth: Layers with weights, not counting shortcuts, 9 n + 2: 164 is ResNet-164 of the slimming paper.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, depth: int = 164) -> None:
        if depth < 11 or (depth - 2) % 9:
            raise ValueError(f"depth is {depth}, expected 9 n + 2 of at least 11, such as 164")
        first, last = _WIDTHS[0], _WIDTHS[-1] * _EXPANSION
        features = nn.Sequential(
            nn.Conv2d(in_channels, first, 3, padding=1, bias=False),
            *_stages(PreBottleneck, (depth - 2) // 9, in_channels=first, expansion=_EXPANSION),
            nn.BatchNorm2d(last),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        super().__init__(features, nn.Linear(last, num_classes))
        initialise_(self)


def _stages(block: Callable[..., nn.Module], count: int, *, in_channels: int, expansion: int) -> list[nn.Module]:
    """Build three stages of `count` blocks; the second and third begin by halving the size."""
    blocks: list[nn.Module] = []
    channels = in_channels
    for stage, width in enumerate(_WIDTHS):
        for number in range(count):
            blocks.append(block(channels, width, stride=2 if stage and number == 0 else 1))
            channels = width * expansion
    return blocks
