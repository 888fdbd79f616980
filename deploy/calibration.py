"""Real pictures from which int8 exports learn what range each activation has."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.datasets.config import load_data_config
from utils.datasets.images import read_image
from utils.datasets.index import build_label_index
from utils.datasets.letterbox import letterbox
from utils.errors import ConfigError, DataError

Item = TypeVar("Item")

# Pixels; a frame of so many in both directions is 3 GiB in float32.
_MOST_SIDE = 16384


def calibration_images(data: str, *, count: int, image_hw: tuple[int, int], split: str = "train") -> list[Tensor]:
    """Pictures spread evenly over a split, as the detector will see them; the same ones every time.

    Args:
        data: Data set YAML.
        count: How many.
        image_hw: Height and width of the frame in pixels.
        split: "train", "val" or "test"; train leaves the others for measuring.

    Returns:
        Each (1, 3, H, W) float32, RGB in [0, 1], letterboxed.

    Raises:
        ConfigError: `count` is below 1, or the YAML cannot be read.
        DataError: The split is missing, empty, or has fewer pictures than asked.
    """
    if count < 1:
        raise ConfigError(f"--calib-images {count}: expected at least 1")
    paths = build_label_index(load_data_config(data), split).paths
    if len(paths) < count:
        raise DataError(
            f"{data}: {split} has {len(paths)} usable images, fewer than the {count} asked for calibration; "
            f"lower --calib-images to {len(paths)} or add images"
        )
    return [as_input(path, image_hw) for path in spread(paths, count)]


def check_image_size(image_hw: tuple[int, int], *, stride: int) -> None:
    """Refuse a frame that a detector cannot take, before pictures are fitted into it.

    Args:
        image_hw: Height and width in pixels.
        stride: The largest of the detector.

    Raises:
        ConfigError: A side is no multiple of the stride, or beyond all pictures.
    """
    for side in image_hw:
        if not 0 < side <= _MOST_SIDE or side % stride:
            raise ConfigError(f"--img-size {side}: expected a multiple of the stride {stride}, at most {_MOST_SIDE}")


def skipped_layers(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """The layers that stay in floating point: those that any of the patterns fits; `*` stands for any part.

    Raises:
        ConfigError: A pattern fits none.
    """
    matching: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise ConfigError(
                f"--int8-skip {pattern} matches no convolution; they are such as {', '.join(names[:3])}; "
                "use * for any part"
            )
        matching |= fitting
    return frozenset(matching)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """The middle one of each of `count` equal stretches: neighbours in a list are often much alike."""
    return [items[(2 * position + 1) * len(items) // (2 * count)] for position in range(count)]


def as_input(path: str, image_hw: tuple[int, int]) -> Tensor:
    """A picture as a network takes it: (1, 3, H, W) float32 in [0, 1], letterboxed."""
    framed, _, _ = letterbox(read_image(path), image_hw)
    planes = np.ascontiguousarray(framed.transpose(2, 0, 1), dtype=np.float32)  # (H, W, 3) to (3, H, W)
    return torch.from_numpy(planes).div(255)[None]
