"""VGG for 32 x 32 images."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from models.classifiers.base import Classifier
from models.classifiers.initial import initialise_

# Convolutions in each of the five stages, by depth as the paper counts it (with its three linear layers).
STAGES: Mapping[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
_WIDTHS = (64, 128, 256, 512, 512)


class VggCifar(Classifier):
    """VGG as Network Slimming adapts it to CIFAR.

    Simonyan and Zisserman, "Very Deep Convolutional Networks", ICLR 2015. Liu et al., ICCV 2017: a batch norm after
    every convolution, pooling between the five stages, the average of the last maps, and one linear layer instead
    of three.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images, whose sides are 16 pixels or more.
        depth: Key of `STAGES`; 19 is the network of the slimming paper.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, depth: int = 16) -> None:
        if depth not in STAGES:
            raise ValueError(f"depth is {depth}, expected one of {', '.join(map(str, STAGES))}")
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, (count, width) in enumerate(zip(STAGES[depth], _WIDTHS, strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        super().__init__(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), nn.Linear(channels, num_classes))
        initialise_(self)
