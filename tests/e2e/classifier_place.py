"""A folder with a classifier and pictures for the real scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from cut_oracle import cuttable_ids
from mask_oracle import lively
from torch import nn

from models.classifiers import ClassifierSpec, LeNet5
from pruning.channels.graph import ChannelGraph
from pruning.surgery.cut import cut
from utils.datasets.classes.pictures import write_picture_file
from utils.storage.checkpoint import Checkpoint, save_checkpoint

NAMES = tuple("abcdefg")
SPEC = ClassifierSpec(name="lenet5", num_classes=7, image_chw=(1, 28, 28), mean=(0.5,), std=(0.25,))


def lenet() -> nn.Module:
    """A LeNet5 whose answers differ from picture to picture."""
    torch.manual_seed(0)
    return lively(LeNet5(num_classes=7, in_channels=1)).float().eval()


def pruned_lenet() -> nn.Module:
    """The same with fewer channels."""
    graph = ChannelGraph.of(lenet(), image_chw=(1, 28, 28))
    return cut(lenet(), graph, cuttable_ids(graph, seed=1)).float().eval()


def save(model: nn.Module, path: Path, spec: ClassifierSpec = SPEC, names: tuple[str, ...] = NAMES) -> Path:
    """Write a checkpoint."""
    save_checkpoint(Checkpoint(spec=spec.to_dict(), names=names, weights=model.state_dict()), path)
    return path


def write_pictures(path: Path) -> None:
    """Noise of seven kinds, labelled in turn: 20 in train and 70 in test."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(NAMES)}
    for split, count in (("train", 20), ("test", 70)):
        arrays[f"x_{split}"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 7
    write_picture_file(path, arrays)
