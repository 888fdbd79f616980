"""Scores of a detector's checkpoint or artefact on a split, for the reports of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engine.evaluation.detection_scores import DetectionScores
from tasks.choose import DETECTION
from tasks.measuring import open_evaluator
from tasks.settings import TaskSettings
from tasks.task import Network
from utils.device import select_device


def scores_on(
    split: str,
    *,
    network: Network,
    data: str,
    img_size: int,
    runtime: Any = None,
    device: torch.device | None = None,
) -> DetectionScores:
    """Measure a detector, or a runtime made from it; each image is padded to its own multiple of the stride."""
    settings = TaskSettings(data=data, img_size=(img_size,), batch_size=32)
    evaluator = open_evaluator(DETECTION, settings, network, device=device or select_device(), split=split)
    scores = evaluator.evaluate(network.model if runtime is None else runtime)
    assert isinstance(scores, DetectionScores)
    return scores


def load(path: str | Path) -> Network:
    """Read a detector's checkpoint."""
    return DETECTION.load(path)
