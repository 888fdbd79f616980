"""Registry of the classifiers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from models.classifiers.densenet import DenseNetCifar
from models.classifiers.plain import LeNet5, VanillaCnn
from models.classifiers.resnet import PreResNetCifar, ResNetCifar
from models.classifiers.vgg import STAGES, VggCifar
from utils.errors import ConfigError

CLASSIFIERS: Mapping[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "vanilla": VanillaCnn,
    **{f"vgg{depth}": partial(VggCifar, depth=depth) for depth in STAGES},
    **{f"resnet{depth}": partial(ResNetCifar, depth=depth) for depth in (20, 32, 44, 56, 110)},
    **{f"preresnet{depth}": partial(PreResNetCifar, depth=depth) for depth in (29, 56, 164)},
    **{f"densenet{depth}": partial(DenseNetCifar, depth=depth) for depth in (22, 40)},
}


def build_classifier(name: str, *, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Build a network with random weights.

    Args:
        name: Key of `CLASSIFIERS`.
        num_classes: Number of outputs.
        in_channels: Image channels.

    Raises:
        ConfigError: No network has this name.
    """
    if name not in CLASSIFIERS:
        raise ConfigError(f"--model {name!r}: no such classifier; known: {', '.join(CLASSIFIERS)}")
    return CLASSIFIERS[name](num_classes=num_classes, in_channels=in_channels)
