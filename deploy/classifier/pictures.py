"""Pictures of classifiers to calibrate and compare on."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from deploy.calibration import spread
from engine.classifier_scores import picture_batches
from models.classifiers import ClassifierSpec
from utils.datasets.classification import PictureData, PictureSet
from utils.errors import DataError


def spread_pictures(pictures: PictureSet, count: int) -> PictureSet:
    """So many of a split, evenly spread; all where there are fewer."""
    chosen = spread(range(len(pictures)), min(count, len(pictures)))
    return replace(pictures, images=pictures.images[chosen], labels=pictures.labels[chosen])


def normalised(pictures: PictureSet, spec: ClassifierSpec) -> list[Tensor]:
    """Batches (B, C, H, W) float32, as a classifier takes them."""
    return [batch.normalised() for batch in picture_batches(pictures, spec)]


def calibration_pictures(data: PictureData, spec: ClassifierSpec, *, count: int, name: str) -> list[Tensor]:
    """Training pictures that integers learn their ranges from: normalised batches of `count` in all.

    Args:
        data: The pictures.
        spec: Of the classifier.
        count: How many.
        name: What the user calls the data.

    Raises:
        DataError: There are not so many.
    """
    if len(data.train) < count:
        raise DataError(
            f"{name}: train has {len(data.train)} pictures, fewer than the {count} asked for calibration; "
            f"lower --calib-images to {len(data.train)} or add pictures"
        )
    return normalised(spread_pictures(data.train, count), spec)
