"""Real images on which int8 exports measure the range of each activation, for detectors and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

from models.classifiers import ClassifierSpec
from utils.datasets.augmenting.letterbox import letterbox
from utils.datasets.classes.loader import Normalisation, PictureLoader
from utils.datasets.classes.pictures import PictureSet
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.datasets.reading.images import read_image
from utils.datasets.spread import spread
from utils.errors import ConfigError, DataError

# Pixels; an image with both sides of this length takes 3 GiB in float32.
_MOST_SIDE = 16384
# Images of a classifier per batch.
_BATCH = 500


def calibration_images(
    data: str, *, count: int, image_hw: tuple[int, int], split: str = "train", cache_dir: str = ""
) -> list[Tensor]:
    """Read images spread evenly over a split, in the form of network input; the same ones every time.

    Args:
        data: Path of the data set YAML.
        count: Number of images.
        image_hw: Height and width of the network input, in pixels.
        split: "train", "val" or "test"; train leaves the others for evaluation.
        cache_dir: Folder of the cached label index; "" for beside the data.

    Returns:
        Letterboxed images, each (1, 3, H, W) float32, RGB in [0, 1].

    Raises:
        ConfigError: `count` is below 1, or the YAML cannot be read.
        DataError: The split is missing, empty, or has fewer than `count` images.
    """
    if count < 1:
        raise ConfigError(f"--calib-images {count}: expected at least 1")
    paths = build_label_index(load_data_config(data), split, cache_dir=cache_dir or None).paths
    if len(paths) < count:
        raise DataError(
            f"{data}: {split} has {len(paths)} usable images, fewer than the {count} asked for calibration; "
            f"lower --calib-images to {len(paths)} or add images"
        )
    return [as_input(path, image_hw) for path in spread(paths, count)]


def calibration_pictures(train: PictureSet, spec: ClassifierSpec, *, count: int, name: str) -> list[Tensor]:
    """Pick `count` training images of a classifier, spread evenly, as normalised batches (B, C, H, W) float32.

    Args:
        train: Training images.
        spec: Specification of the classifier.
        count: Number of images.
        name: Name of the data, for messages.

    Raises:
        DataError: There are fewer than `count` training images.
    """
    if len(train) < count:
        raise DataError(
            f"{name}: train has {len(train)} images, fewer than the {count} asked for calibration; "
            f"lower --calib-images to {len(train)} or add images"
        )
    return normalised(train.spread(count), spec)


def normalised(pictures: PictureSet, spec: ClassifierSpec) -> list[Tensor]:
    """Return the images of a classifier as normalised batches (B, C, H, W) float32."""
    normalisation = Normalisation.of(spec.mean, spec.std, device=pictures.images.device)
    loader = PictureLoader(pictures, batch_size=_BATCH, normalisation=normalisation)
    return [batch.normalised() for batch in loader]


def check_image_size(image_hw: tuple[int, int], *, stride: int) -> None:
    """Refuse an image size that a detector cannot take, before images are letterboxed to it.

    Args:
        image_hw: Height and width in pixels.
        stride: Largest stride of the detector.

    Raises:
        ConfigError: A side is not a multiple of the stride, or is too long.
    """
    for side in image_hw:
        if not 0 < side <= _MOST_SIDE or side % stride:
            raise ConfigError(f"--img-size {side}: expected a multiple of the stride {stride}, at most {_MOST_SIDE}")


def skipped_layers(names: Sequence[str], patterns: Sequence[str]) -> frozenset[str]:
    """Return the layers to keep in floating point: those that match a pattern, in which `*` matches any part.

    Raises:
        ConfigError: A pattern matches no layer.
    """
    matching: set[str] = set()
    for pattern in patterns:
        fitting = {name for name in names if fnmatchcase(name, pattern)}
        if not fitting:
            raise ConfigError(
                f"--int8-skip {pattern} matches no convolution; examples of their names: {', '.join(names[:3])}; "
                "use * for any part"
            )
        matching |= fitting
    return frozenset(matching)


def as_input(path: str, image_hw: tuple[int, int]) -> Tensor:
    """Read an image as network input: (1, 3, H, W) float32 in [0, 1], letterboxed."""
    framed, _, _ = letterbox(read_image(path), image_hw)
    planes = np.ascontiguousarray(framed.transpose(2, 0, 1), dtype=np.float32)  # (H, W, 3) to (3, H, W)
    return torch.from_numpy(planes).div(255)[None]
