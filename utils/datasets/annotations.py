"""True boxes of one image, in pixels: what an evaluation and a training both start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """True boxes of one image.

    Attributes:
        classes: (n,) int64 class ids.
        ltwh: (n, 4) float64 left, top, width, height in pixels.
        areas: (n,) float64 pixels that an object covers, which decides whether it is small or large; at most NaN
            while the box is to stand for it.
        is_crowd: (n,) bool, whether a box marks a group: detections inside count neither as right nor as wrong.
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
        """Take (n, 7) rows apart: class, left, top, width, height, area, is crowd."""
        return cls(
            classes=rows[:, 0].astype(np.int64),
            ltwh=rows[:, 1:5].astype(np.float64),
            areas=rows[:, 5].astype(np.float64),
            is_crowd=rows[:, 6] > 0,
        )

    def to_rows(self) -> Array:
        """Join all columns to (n, 7) float64, as `from_rows` takes them."""
        return np.column_stack([self.classes, self.ltwh, self.areas, self.is_crowd]).astype(np.float64)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, rows: Array) -> Annotations:
        """Return the chosen rows: a mask or indices."""
        return Annotations(
            classes=self.classes[rows], ltwh=self.ltwh[rows], areas=self.areas[rows], is_crowd=self.is_crowd[rows]
        )

    def with_areas(self) -> Annotations:
        """Let the box stand for every area that is not known."""
        boxes = self.ltwh[:, 2] * self.ltwh[:, 3]
        areas = np.where(np.isnan(self.areas), boxes, self.areas)
        return Annotations(classes=self.classes, ltwh=self.ltwh, areas=areas, is_crowd=self.is_crowd)

    def of_class(self, classes: Array) -> Annotations:
        """Return the same boxes with other class ids (n,)."""
        return Annotations(classes=classes, ltwh=self.ltwh, areas=self.areas, is_crowd=self.is_crowd)


def join(parts: Sequence[Annotations]) -> Annotations:
    """Put the annotations of one image behind each other."""
    return Annotations.from_rows(np.concatenate([np.zeros((0, 7)), *(part.to_rows() for part in parts)]))
