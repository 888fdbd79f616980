"""The hyper-parameters of a training: those of a YAML, with the overrides of the command line."""

from __future__ import annotations

import logging
from dataclasses import replace

from commands.train_config import TrainConfig
from tasks.task import Recipe
from utils.config.hyp import Hyp, load_hyp

LOGGER = logging.getLogger(__name__)

_OVERRIDES = ("lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "label_smoothing")


def read_hyp(config: TrainConfig, recipe: Recipe) -> Hyp:
    """Return the hyper-parameters of a training.

    Args:
        config: Settings, which name the YAML or override its values.
        recipe: Where the settings name no YAML, the task's own.
    """
    hyp = load_hyp(config.hyp or recipe.hyp)
    if config.optimizer_name != "sgd" and config.lr0 is None:
        share = recipe.adaptive_rate
        hyp = replace(hyp, lr0=hyp.lr0 * share, warmup_bias_lr=hyp.warmup_bias_lr * share)
        LOGGER.info(
            "learning rate %g for %s (%g of the YAML's; --lr0 sets it)", hyp.lr0, config.optimizer_name, share
        )
    if not config.hyp and config.optimizer_name in recipe.momenta:
        momentum = recipe.momenta[config.optimizer_name]
        hyp = replace(hyp, momentum=momentum, warmup_momentum=momentum)
    given = {name: value for name in _OVERRIDES if (value := getattr(config, name)) is not None}
    if "momentum" in given and hyp.warmup_momentum == hyp.momentum:
        given["warmup_momentum"] = given["momentum"]  # a warm-up without one of its own
    return replace(hyp, **given)
