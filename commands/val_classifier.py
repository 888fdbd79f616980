"""val.py for classifiers: a checkpoint, or any artefact of one, measured on labelled images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import torch
from torch import Tensor

from commands.detector_flags import warn_of_detector_flags
from deploy.formats import FORMATS, format_of
from deploy.formats import load_classifier as load_exported_classifier
from deploy.settings import RuntimeOptions
from engine.evaluation.classification import ClassifierEvaluation, check_same_task, evaluate_classifier
from models.classifiers import ClassifierSpec, load_classifier
from utils.datasets.classes.known import load_pictures
from utils.datasets.classes.pictures import PictureSet
from utils.device import select_device
from utils.errors import CheckpointError, ConfigError
from utils.plots.curves import plot_confusion
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)

# Normalised images (B, C, H, W) to logits (B, K).
Network: TypeAlias = Callable[[Tensor], Tensor]

_CPU = torch.device("cpu")
# Data sets of classifiers have two splits.
_SPLITS = {"train": "train", "val": "test", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class ClassificationSettings:
    """Those settings of val.py that mean something for a classifier; it has them under the same names."""

    weights: tuple[str, ...]
    data: str
    task: str
    batch_size: int
    device: str
    threads: int | None
    verbose: bool
    cache_dir: str
    project: str
    name: str
    exist_ok: bool

    def __post_init__(self) -> None:
        if len(self.weights) > 1:
            raise ConfigError(
                f"--weights: got {len(self.weights)} with --data {self.data}, expected one; classifiers are measured "
                "one at a time, and detectors on the YAML of a data set"
            )
        if self.task not in _SPLITS:
            raise ConfigError(f"--task {self.task}: it is for detectors; expected {', '.join(_SPLITS)}")

    @classmethod
    def of(cls, config: Any) -> ClassificationSettings:
        """From all settings of val.py; a warning names those that change nothing.

        Raises:
            ConfigError: They ask for what only detectors have.
        """
        own = [item.name for item in fields(cls)]
        warn_of_detector_flags(config, own=own)
        return cls(**{name: getattr(config, name) for name in own})

    @property
    def split(self) -> str:
        """Which images: train or test."""
        return _SPLITS[self.task]


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierSession:
    """A classifier and what it is measured on.

    Attributes:
        network: In evaluation mode.
        spec: How images are normalised.
        images: Where the network computes.
    """

    network: Network
    spec: ClassifierSpec
    pictures: PictureSet


def run_classification(config: Any) -> ClassifierEvaluation:
    """Measure, write the run folder and log the line.

    Args:
        config: The settings of val.py.

    Raises:
        CheckpointError: The weights cannot be read, are no classifier's, or give no numbers.
        ConfigError, DataError: The data are of another network or cannot be read, or a setting is for detectors.
    """
    settings = ClassificationSettings.of(config)
    session = open_session(settings)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    with torch.inference_mode():
        evaluation = evaluate_classifier(
            session.network, session.pictures, spec=session.spec, batch_size=settings.batch_size
        )
    if not math.isfinite(evaluation.scores.loss):
        raise CheckpointError(
            f"{settings.weights[0]} gives logits that are NaN or infinite; train it again, or give another file"
        )
    names = session.pictures.names
    plot_confusion(evaluation.confusion, folder.path / "confusion_matrix.png", names=names)
    result = {"split": settings.split, **result_of(evaluation, names=names)}
    folder.write_result({**result, "config": plain(config)})
    logger.info("%s\nresults in %s", _lines(evaluation, settings, names=names), folder.path)
    return evaluation


def open_session(settings: ClassificationSettings) -> ClassifierSession:
    """Read weights and images.

    Raises:
        CheckpointError, ConfigError, DataError: As of `run_classification`.
    """
    (weights,) = settings.weights
    is_artefact = format_of(weights) not in (None, FORMATS["pytorch"])
    network, spec, names = _artefact(settings) if is_artefact else _checkpoint(settings)
    data = load_pictures(settings.data, settings.cache_dir or None)
    check_same_task(spec, data, names=names, weights=weights, name=settings.data)
    pictures = data.train if settings.split == "train" else data.test
    device = _CPU if is_artefact else select_device(settings.device)
    return ClassifierSession(network=network, spec=spec, pictures=pictures.to(device))


def result_of(evaluation: ClassifierEvaluation, *, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the evaluation's part of result.json: shares from 0 to 1, counts of images, seconds."""
    return {
        "accuracy": evaluation.scores.accuracy,
        "top5": evaluation.top5,
        "loss": evaluation.scores.loss,
        "images": evaluation.scores.count,
        "per_class": [
            {"name": name, "images": count, "accuracy": share} for name, count, share in _per_class(evaluation, names)
        ],
        "confusion": evaluation.confusion.tolist(),
        "seconds": evaluation.seconds,
    }


def _checkpoint(settings: ClassificationSettings) -> tuple[Network, ClassifierSpec, tuple[str, ...]]:
    """Network, description and class names of a file that training or pruning wrote."""
    options, device = RuntimeOptions(threads=settings.threads), select_device(settings.device)
    loaded = load_classifier(settings.weights[0])
    if options.threads:
        torch.set_num_threads(options.threads)
    return loaded.model.to(device), loaded.spec, loaded.names


def _artefact(settings: ClassificationSettings) -> tuple[Network, ClassifierSpec, tuple[str, ...]]:
    """Open an exported or quantised classifier; its names are those of its metadata, and may be missing."""
    (weights,) = settings.weights
    if settings.device not in ("", "cpu"):
        logger.warning("%s: it computes on the CPU, not on %s", weights, settings.device)
    runtime = load_exported_classifier(weights, options=RuntimeOptions(threads=settings.threads))
    metadata = runtime.metadata
    mean, std = metadata.normalisation
    try:
        spec = ClassifierSpec(
            name="",
            num_classes=metadata.num_classes,
            image_chw=metadata.image_chw,
            mean=mean,
            std=std,
        )
    except ConfigError as error:
        raise CheckpointError(f"metadata of {weights}: {error}") from None
    return runtime, spec, metadata.names


def _per_class(evaluation: ClassifierEvaluation, names: tuple[str, ...]) -> Iterator[tuple[str, int, float | None]]:
    """Name, number of images and accuracy of each class."""
    return zip(names, evaluation.class_counts.tolist(), evaluation.class_accuracies, strict=True)


def _lines(evaluation: ClassifierEvaluation, settings: ClassificationSettings, *, names: tuple[str, ...]) -> str:
    """One line of the totals and one of the time; with --verbose one for each class between them."""
    scores, count = evaluation.scores, evaluation.scores.count
    top5 = "" if evaluation.top5 is None else f", top-5 {evaluation.top5:.4f}"
    lines = [
        f"accuracy {scores.accuracy:.4f}{top5}, loss {scores.loss:.4f} "
        f"on {count} {settings.split} images of {settings.data}"
    ]
    if settings.verbose:
        width = max(8, *map(len, names))
        for name, own, share in _per_class(evaluation, names):
            lines.append(f"{name:>{width}} {own:8d} images, " + ("none" if share is None else f"{share:.4f} right"))
    stages = ", ".join(f"{name} {1000 * spent / count:.3f}" for name, spent in evaluation.seconds.items())
    return "\n".join([*lines, f"ms per image: {stages}"])
