"""Registry of the classifiers by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from models.classifiers.densenet import DenseNetCifar
from models.classifiers.libraries import (
    LIBRARIES,
    LayersOnMeta,
    build_from_library,
    is_library_network,
    library_with,
)
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
    """Build a network with random weights, drawn from torch's generator.

    It is marked by an attribute `is_stored_by_name`: checkpoints hold its name and weights, and not its code.

    Args:
        name: Key of `CLASSIFIERS`, or a network of a library such as `torchvision:resnet18` or `timm:resnet18`.
        num_classes: Number of outputs.
        in_channels: Image channels.

    Raises:
        ConfigError: No network has this name, or its library is not installed.
    """
    model = _built(name, num_classes=num_classes, in_channels=in_channels)
    model.is_stored_by_name = True  # type: ignore[assignment]
    return model


def _built(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network, as `build_classifier` does.

    Raises:
        ConfigError: No network has this name, or its library is not installed.
    """
    if is_library_network(name):
        return build_from_library(name, num_classes=num_classes, in_channels=in_channels)
    if name not in CLASSIFIERS:
        found = [library_with(name), *difflib.get_close_matches(name, CLASSIFIERS)]
        close = ", ".join(other for other in found if other)
        hint = f"close: {close}; " if close else ""
        known = ", ".join([*CLASSIFIERS, *(f"{library}:NAME" for library in LIBRARIES)])
        raise ConfigError(f"--cfg {name!r}: no such classifier; {hint}known: {known}")
    return CLASSIFIERS[name](num_classes=num_classes, in_channels=in_channels)


def empty_classifier(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """Build a network whose layers have shapes and no values, without memory for them.

    Constants that no file stores, such as windows of attention, have their values.

    Raises:
        ConfigError: No network has this name, or its library is not installed.
    """
    with LayersOnMeta():
        model = build_classifier(name, num_classes=num_classes, in_channels=in_channels)
    stored = model.state_dict()
    if constants := [key for key, buffer in model.named_buffers() if buffer.is_meta and key not in stored]:
        # Built with few classes, so that a file that claims billions takes no memory.
        with torch.random.fork_rng(devices=[]):
            values = dict(build_classifier(name, num_classes=2).named_buffers())
        for key in constants:
            module, _, attribute = key.rpartition(".")
            setattr(model.get_submodule(module), attribute, values[key])
    return model
