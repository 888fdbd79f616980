"""An evaluator for networks of a task on one split of its data."""

from __future__ import annotations

import torch

from engine.evaluation.evaluator import Evaluator
from tasks.settings import TaskSettings
from tasks.task import Network, Task
from utils.errors import DataError


def open_evaluator(
    task: Task, settings: TaskSettings, network: Network, *, device: torch.device, split: str = "val"
) -> Evaluator:
    """Read a split and return the evaluator for `network` and for everything that is made from it, in float32.

    Raises:
        ConfigError: Network and data have different classes.
        DataError: The split has no labels, so nothing can be measured.
    """
    data = task.evaluation_set(settings, task.read_split(settings, split, network=network), network=network)
    if not data.is_labelled:
        raise DataError(
            f"{settings.data}: {split} has no boxes, so nothing can be measured on it; give labelled data"
        )
    return Evaluator(data=data, device=device)
