"""The trainings of an experiment: each runs once, goes on where it was killed, and is read where it is complete."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from commands.classify import make_classifier, train_classifier
from commands.classify_config import ClassifierConfig
from engine.training.hooks import Hook
from models.classifiers import load_classifier
from utils.datasets.classes.pictures import PictureData
from utils.errors import ConfigError
from utils.storage.files import read_yaml
from utils.storage.run_folder import RunFolder, RunSettings, plain

LOGGER = logging.getLogger(__name__)

# Settings that say where, not what.
PLACES = ("project", "name", "exist_ok", "cache_dir", "device")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A complete training.

    Attributes:
        weights: Checkpoint after the last epoch.
        accuracy: On the test pictures then, 0 to 1.
    """

    weights: Path
    accuracy: float


def experiment_folder(config: RunSettings) -> RunFolder:
    """Return the folder of an experiment, new or, with `exist_ok`, to go on in.

    Raises:
        ConfigError: What lies there was made with other settings, or the folder cannot be made.
    """
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    kept = folder.path / "opt.yaml"
    if kept.exists():
        before, now = read_yaml(kept, what="settings"), plain(config)
        for name in sorted((before.keys() & now.keys()) - set(PLACES)):
            if before[name] != now[name]:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{folder.path} was made with {flag} {before[name]}, not {now[name]}; give another --name"
                )
    folder.write_config(config)
    return folder


def train_stage(
    training: ClassifierConfig,
    data: PictureData,
    *,
    make_model: Callable[[], nn.Module] | None = None,
    hooks: Callable[[nn.Module], Sequence[Hook]] | None = None,
) -> Stage:
    """Train, unless that is done; a training that was begun goes on.

    Args:
        training: Its settings, the folder among them.
        data: The pictures.
        make_model: The network to start from; by default the one that `training` names.
        hooks: Of a method, for the network.
    """
    folder = Path(training.project) / training.name
    weights, result = folder / "weights/last.pt", folder / "result.json"
    if not result.exists():
        is_begun = weights.exists()
        if is_begun:  # its widths are those of the file: pruning again may take long, and need not give the same
            model = load_classifier(weights).model.train()
        else:
            model = make_model() if make_model else make_classifier(training, data)
        resumed = replace(training, resume=str(weights) if is_begun else "", exist_ok=True)
        train_classifier(model, data, config=resumed, hooks=hooks(model) if hooks else ())
    else:
        LOGGER.info("%s is complete", folder)
    accuracy = json.loads(result.read_text(encoding="utf-8"))["final_accuracy"]
    return Stage(weights=weights, accuracy=accuracy)
