"""Images on which classifiers are calibrated and compared."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from deploy.calibration import spread
from engine.evaluation.classification_scores import picture_batches
from models.classifiers import ClassifierSpec
from utils.datasets.classes.pictures import PictureData, PictureSet
from utils.errors import DataError


def spread_pictures(pictures: PictureSet, count: int) -> PictureSet:
    """Pick `count` images spread evenly over a split, or all if there are fewer."""
    chosen = spread(range(len(pictures)), min(count, len(pictures)))
    return replace(pictures, images=pictures.images[chosen], labels=pictures.labels[chosen])


def normalised(pictures: PictureSet, spec: ClassifierSpec) -> list[Tensor]:
    """Return the images as normalised batches (B, C, H, W) float32."""
    return [batch.normalised() for batch in picture_batches(pictures, spec)]


def calibration_pictures(data: PictureData, spec: ClassifierSpec, *, count: int, name: str) -> list[Tensor]:
    """Pick the training images for calibration: normalised batches of `count` images in all.

    Args:
        data: Data set.
        spec: Specification of the classifier.
        count: Number of images.
        name: Name of the data, for messages.

    Raises:
        DataError: There are fewer than `count` training images.
    """
    if len(data.train) < count:
        raise DataError(
            f"{name}: train has {len(data.train)} images, fewer than the {count} asked for calibration; "
            f"lower --calib-images to {len(data.train)} or add images"
        )
    return normalised(spread_pictures(data.train, count), spec)
