"""Ground-truth boxes of one image, in pixels, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """Ground-truth boxes of one image.

    Attributes:
        classes: Class ids (n,) int64.
        ltwh: Boxes (n, 4) float64 left, top, width, height in pixels.
        areas: Areas (n,) float64 of the objects in pixels, which decide whether they are small or large; NaN where
            `with_areas` is to use the area of the box.
        is_crowd: Mask (n,) bool of boxes that mark a group; detections inside count neither as right nor as wrong.
    """

    classes: Array
    ltwh: Array
    areas: Array
    is_crowd: Array

    @classmethod
    def none(cls) -> Annotations:
        """Return the annotations of an image without objects."""
        return cls.from_rows(np.zeros((0, 7)))

    @classmethod
    def from_rows(cls, rows: Array) -> Annotations:
        """Build annotations from rows (n, 7): class, left, top, width, height, area, is crowd."""
        return cls(
            classes=rows[:, 0].astype(np.int64),
            ltwh=rows[:, 1:5].astype(np.float64),
            areas=rows[:, 5].astype(np.float64),
            is_crowd=rows[:, 6] > 0,
        )

    def to_rows(self) -> Array:
        """Join all columns to rows (n, 7) float64, as `from_rows` takes them."""
        return np.column_stack([self.classes, self.ltwh, self.areas, self.is_crowd]).astype(np.float64)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: Array) -> Annotations:
        """Return the rows that a mask or indices select."""
        return Annotations(
            classes=self.classes[rows], ltwh=self.ltwh[rows], areas=self.areas[rows], is_crowd=self.is_crowd[rows]
        )

    def with_areas(self) -> Annotations:
        """Return the annotations with the area of the box in place of each unknown area."""
        boxes = self.ltwh[:, 2] * self.ltwh[:, 3]
        areas = np.where(np.isnan(self.areas), boxes, self.areas)
        return Annotations(classes=self.classes, ltwh=self.ltwh, areas=areas, is_crowd=self.is_crowd)

    def of_class(self, classes: Array) -> Annotations:
        """Return the same boxes with other class ids (n,)."""
        return Annotations(classes=classes, ltwh=self.ltwh, areas=self.areas, is_crowd=self.is_crowd)


def join(parts: Sequence[Annotations]) -> Annotations:
    """Concatenate several annotations of one image."""
    return Annotations.from_rows(np.concatenate([np.zeros((0, 7)), *(part.to_rows() for part in parts)]))
