"""Chains of a few layers: LeNet5 and the vanilla network of RePr."""

from __future__ import annotations

from torch import nn

from models.classifiers.base import Classifier


class LeNet5(Classifier):
    """LeNet5 with ReLU, max pooling and full connections between the two convolutions, as is usual today.

    LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 1998.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images, which are padded from 28 x 28 to 32 x 32.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        classifier = nn.Sequential(
            nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)
        )
        super().__init__(features, classifier)


class VanillaCnn(Classifier):
    """The vanilla network of RePr: C(32) - C(32) - C(32) - FC(10).

    Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019. The paper gives the number of
    filters and leaves the rest open. Ours: 3x3 filters, batch norm, ReLU and 2x2 max pooling in each layer, and a
    linear layer on the remaining 4 x 4 maps.

    Args:
        num_classes: Number of outputs.
        in_channels: Image channels.
        width: Filters in each layer.
        num_layers: Number of convolutions, each of which halves the image.
        side: Height and width of the images in pixels.
    """

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 3, width: int = 32, num_layers: int = 3, side: int = 32
    ) -> None:
        layers: list[nn.Module] = []
        for number in range(num_layers):
            layers += [
                nn.Conv2d(width if number else in_channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        values = width * (side // 2**num_layers) ** 2
        super().__init__(nn.Sequential(*layers), nn.Linear(values, num_classes))
