"""Which task settings name: by their data, else by their network."""

from __future__ import annotations

from pathlib import Path

from models.classifiers import CLASSIFIERS, ClassifierSpec
from tasks.classification import Classification
from tasks.detection import Detection
from tasks.task import Task
from utils.datasets.classes.known import are_pictures
from utils.errors import ConfigError
from utils.storage.checkpoint import is_own_checkpoint
from utils.storage.weights_file import check_weights_file, is_legacy, read_plain

DETECTION, CLASSIFICATION = Detection(), Classification()
TASKS: tuple[Task, ...] = (DETECTION, CLASSIFICATION)


def task_of(*, data: str = "", weights: str = "", cfg: str = "") -> Task:
    """Return the task of the data and the network that are given.

    Raises:
        ConfigError: One is for detection and another for classification.
    """
    signs: dict[str, Task] = {}
    if are_pictures(data):
        signs[f"--data {data}"] = CLASSIFICATION
    elif data.lower().endswith((".yaml", ".yml")) or Path(data).is_file():  # a missing folder may be of either task
        signs[f"--data {data}"] = DETECTION
    if cfg.endswith((".yaml", ".yml")):
        signs[f"--cfg {cfg}"] = DETECTION
    elif cfg in CLASSIFIERS or ":" in cfg:
        signs[f"--cfg {cfg}"] = CLASSIFICATION
    if (
        weights
        and Path(weights).is_file()
        and Path(weights).suffix in (".pt", ".pth")
        and (task := _task_of_file(weights))
    ):
        signs[f"--weights {weights}"] = task
    found = {task.name for task in signs.values()}
    if len(found) > 1:
        listed = ", ".join(f"{sign} is for {task.name}" for sign, task in signs.items())
        raise ConfigError(f"{listed}; give data and network of one task")
    return next(iter(signs.values()), DETECTION)


def _task_of_file(weights: str) -> Task | None:
    """Return the task of a checkpoint; None for a state dict of plain tensors, which may be of either.

    Raises:
        CheckpointError: The file is damaged.
    """
    if is_legacy(weights):
        return None
    content = read_plain(check_weights_file(weights))
    if content is not None and not is_own_checkpoint(content):
        return None
    is_classifier = content is not None and ClassifierSpec.describes(content.get("spec"))
    return CLASSIFICATION if is_classifier else DETECTION  # pickled classes are those of an official YOLOv5
