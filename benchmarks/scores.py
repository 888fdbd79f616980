"""Scores of a detector's checkpoint or artefact on a split, for the reports of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.evaluation.detection_scores import DetectionScores
from tasks.choose import DETECTION
from tasks.measuring import open_evaluator
from tasks.settings import TaskSettings
from tasks.task import Network
from utils.boxes.boxes import ltwh_to_xyxy
from utils.datasets.indexing.index import LabelIndex
from utils.device import select_device
from utils.metrics.bootstrap import Boxes
from utils.metrics.ground_truth import true_boxes


def scores_on(
    split: str,
    *,
    network: Network,
    data: str,
    img_size: int,
    runtime: Any = None,
    device: torch.device | None = None,
    cache_dir: str = "",
) -> DetectionScores:
    """Measure a detector, or a runtime made from it; each image is padded to its own multiple of the stride."""
    settings = TaskSettings(data=data, img_size=(img_size,), batch_size=32, cache_dir=cache_dir)
    evaluator = open_evaluator(DETECTION, settings, network, device=device or select_device(), split=split)
    scores = evaluator.evaluate(network.model if runtime is None else runtime)
    assert isinstance(scores, DetectionScores)
    return scores


def load(path: str | Path) -> Network:
    """Read a detector's checkpoint."""
    return DETECTION.load(path)


def boxes_of(scores: DetectionScores, index: LabelIndex) -> Boxes:
    """Return found and true boxes by image, for the bootstrap; `index` is of the split that was measured."""
    # Rows (N, 7): image, left, top, width, height, score, category, all by the ids of the data set.
    rows, classes = scores.rows, {category: place for place, category in enumerate(scores.category_ids)}
    class_ids = np.array([classes[int(category)] for category in rows[:, 6]], np.float64)
    found = np.column_stack([ltwh_to_xyxy(rows[:, 1:5]), rows[:, 5], class_ids])
    return Boxes(
        found=[found[rows[:, 0] == image] for image in scores.sources],
        truths=true_boxes(index),
        crowds=true_boxes(index, crowds=True),
    )


def data_name(data: str) -> str:
    """Return a name of a data set for folders and tables: of its YAML, or of the folder of a data.yaml."""
    path = Path(data)
    return path.stem if path.stem != "data" else path.resolve().parent.name
