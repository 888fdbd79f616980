"""What a classifier's training starts from, made from its settings: pictures, network, description."""

from __future__ import annotations

import torch
from torch import nn

from engine.classifier_config import ClassifierConfig
from engine.classifier_evaluation import check_same_task
from models.classifiers import ClassifierSpec, build_classifier, load_classifier
from models.classifiers.load import logits_shape
from utils.datasets.classification import PictureData, channel_statistics
from utils.datasets.known_pictures import load_pictures
from utils.device import seed_everything
from utils.errors import ConfigError


def read_pictures(config: ClassifierConfig) -> PictureData:
    """The pictures that the settings name."""
    return load_pictures(config.data, config.cache_dir or None)


def make_classifier(config: ClassifierConfig, data: PictureData) -> nn.Module:
    """The network that the settings name, with random weights of their seed or with those of a file.

    Raises:
        ConfigError: There is no such network, or the file's takes other pictures or tells other classes apart.
    """
    seed_everything(config.seed)
    if not config.weights:
        return build_classifier(config.model, num_classes=len(data.names), in_channels=data.image_chw[0])
    loaded = load_classifier(config.weights)
    weights, name = f"--weights {config.weights}", f"--data {config.data}"
    check_same_task(loaded.spec, data, names=loaded.names, weights=weights, name=name)
    return loaded.model


def classifier_spec(model: nn.Module, data: PictureData, *, name: str) -> ClassifierSpec:
    """What `model` is, with the statistics of the training pictures as its normalisation.

    Args:
        model: The network, of any widths.
        data: Its pictures.
        name: Of the network in `CLASSIFIERS`; empty for one that only code elsewhere describes.

    Raises:
        ConfigError: It is another network than its name tells, or does not take these pictures.
    """
    if name:
        with torch.device("meta"):
            named = build_classifier(name, num_classes=len(data.names), in_channels=data.image_chw[0])
        if named.state_dict().keys() != model.state_dict().keys():
            raise ConfigError(
                f"--model {name} has other layers than the {type(model).__name__} to be trained; name that one, or "
                "give an empty name for a network of your own"
            )
    expected = (2, len(data.names))
    try:
        found = logits_shape(model, data.image_chw)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(
            f"--model {name}: no network for pictures of {data.image_chw} ({reason}); choose another"
        ) from error
    if found != expected:
        raise ConfigError(f"--model {name}: two pictures give logits of {found}, expected {expected}")
    mean, std = channel_statistics(data.train)
    return ClassifierSpec(name=name, num_classes=len(data.names), image_chw=data.image_chw, mean=mean, std=std)
