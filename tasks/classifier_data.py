"""Checks that images fit a classifier: their size, and the number and the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from deploy.outputs.logits import ClassifierMetadata
from models.classifiers import ClassifierSpec
from models.classifiers.load import logits_shape
from tasks.task import Data, Network
from utils.datasets.class_names import class_order, compare_class_names
from utils.datasets.classes.pictures import PictureSet, channel_statistics
from utils.errors import CheckpointError, ConfigError

_REASON_LENGTH = 160


def of_metadata(metadata: ClassifierMetadata, *, where: str) -> Network:
    """Describe the network of an artefact, which has no name, and no class names where it was exported without."""
    try:
        spec = metadata.spec
    except ConfigError as error:
        raise CheckpointError(f"metadata of {where}: {error}") from None
    return Network(model=nn.Identity(), spec=spec, names=metadata.names)


def spec_of(network: Network) -> ClassifierSpec:
    """Return the description of a classifier."""
    assert isinstance(network.spec, ClassifierSpec)
    return network.spec


def new_spec(model: nn.Module, data: Data, *, name: str) -> ClassifierSpec:
    """Describe a network to be trained, with the statistics of the training images as its normalisation.

    Args:
        model: The network.
        data: Its images.
        name: Name of the network, as `--cfg` takes it; empty for one that only code elsewhere builds.

    Raises:
        ConfigError: It does not take these images.
    """
    image_chw, expected = data.train.image_chw, (2, len(data.names))
    try:
        found = logits_shape(model, image_chw)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:_REASON_LENGTH]
        raise ConfigError(f"--cfg {name}: no network for images of {image_chw} ({reason}); choose another") from error
    if found != expected:
        raise ConfigError(f"--cfg {name}: two images give logits of {found}, expected {expected}")
    mean, std = channel_statistics(data.train)
    return ClassifierSpec.of(name, num_classes=len(data.names), image_chw=image_chw, mean=mean, std=std)


def check_data(network: Network, pictures: PictureSet, *, weights: str, data: str) -> None:
    """Refuse data whose image size or number of classes differs from the network's; other names are a warning.

    Args:
        network: The classifier; it may have no class names.
        pictures: Images of one split.
        weights, data: Names of both, for messages.

    Raises:
        ConfigError: Image size or number of classes differ.
    """
    spec = spec_of(network)
    if (spec.image_chw, spec.num_classes) != (pictures.image_chw, len(pictures.names)):
        raise ConfigError(
            f"{weights} has {spec.num_classes} classes and takes images of {spec.image_chw}, but {data} has "
            f"{len(pictures.names)} and images of {pictures.image_chw}; use the data it was trained on, or for other "
            "classes train.py with --cfg"
        )
    compare_class_names(network.names, pictures.names, weights=weights, data=data)


def in_order_of(pictures: PictureSet, names: Sequence[str]) -> PictureSet:
    """Return a split with its classes in the order of `names`; unchanged where these are not the same classes."""
    order = class_order(names, pictures.names)
    if order is None or tuple(names) == pictures.names:
        return pictures
    places = torch.tensor(order, device=pictures.labels.device)
    return replace(pictures, labels=places[pictures.labels], names=tuple(names))
