"""Small labelled images for tests of classifiers, and the settings of short trainings on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from commands.train import HookFactory, no_hooks, run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from tasks.classification import Classification
from utils.datasets.classes.pictures import PictureData, PictureSet


def small_pictures(*, train: int = 48, test: int = 20, chw: tuple[int, int, int] = (1, 28, 28)) -> PictureData:
    """Noise, brighter in one half of the picture or the other: two classes that are easy to tell apart."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> PictureSet:
        labels = torch.arange(count) % 2
        images = torch.randint(0, 128, (count, *chw), generator=generator, dtype=torch.uint8)
        half = chw[2] // 2
        images[labels == 0, :, :, :half] += 100
        images[labels == 1, :, :, half:] += 100
        return PictureSet(images=images, labels=labels, names=("left", "right"))

    return PictureData(train=split(train), test=split(test))


def write_class_folder(
    root: Path, *, names: Sequence[str] = ("left", "right"), train: int = 12, val: int = 6, side: int = 32
) -> Path:
    """Write images like those of `small_pictures`, in colour, into folders; `names` are those of left and right."""
    data = small_pictures(train=2 * train, test=2 * val, chw=(3, side, side))
    for split, pictures in (("train", data.train), ("val", data.test)):
        assert isinstance(pictures.images, torch.Tensor)
        for number, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
            path = root / split / names[int(label)] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(image.numpy().transpose(1, 2, 0))).save(path)
    return root


def classifier_config(folder: Path, **settings: Any) -> TrainConfig:
    """Three epochs of LeNet5 in a run folder below `folder`."""
    defaults: dict[str, Any] = {
        "cfg": "lenet5",
        "data": "small",
        "epochs": 3,
        "batch_size": 16,
        "device": "cpu",
        "amp": "off",
        "augment": "crop",
        "noplots": True,
        "cache_dir": str(folder / "cache"),
        "project": str(folder / "runs"),
    }
    values = {**defaults, **settings}
    return TrainConfig(**{"nominal_batch": values["batch_size"], **values})


def trained(
    config: TrainConfig,
    pictures: PictureData | None = None,
    *,
    own: nn.Module | None = None,
    hooks: HookFactory = no_hooks,
) -> TrainResult:
    """Train a classifier, on `pictures` or on those that the settings name."""
    result = run_training(config, hooks=hooks, task=Classification(pictures=pictures, own=own))
    assert result is not None
    return result
