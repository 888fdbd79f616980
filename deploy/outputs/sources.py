"""Checkpoints of either task as the source of artefacts, and as the format that PyTorch runs."""

from __future__ import annotations

from pathlib import Path

import torch

from deploy.artefact.runtime import RuntimeModel
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.detector import DetectorSource
from deploy.settings import RuntimeOptions
from models.classifiers import load_classifier
from models.classifiers.load import is_classifier
from models.load import load_model
from utils.storage.files import sha256_of


def open_source(path: str | Path) -> DetectorSource | ClassifierSource:
    """Read a checkpoint of this project, or an official YOLOv5 one.

    Raises:
        CheckpointError: The file does not exist, is damaged, or contains something else.
    """
    if is_classifier(path):
        return ClassifierSource.of(load_classifier(path))
    loaded = load_model(path)
    return DetectorSource(model=loaded.model, names=loaded.names, sha256=sha256_of(path))


def load_pytorch(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a checkpoint as a runtime: batch norms fused, channels-last memory format, optionally in 16 bits."""
    if options.threads:
        torch.set_num_threads(options.threads)
    return open_source(path).runtime(device, half=options.half)
