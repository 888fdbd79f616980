"""Readers of single values in a COCO JSON as tools really write them: ids as text, missing areas, outlines."""

from __future__ import annotations

import math
import re
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import DataError

Item = dict[str, Any]

_LARGEST = 2**63 - 1
_FALSE = ("", "0", "0.0", "false", "no", "none", "null")
_TRUE = ("1", "1.0", "true", "yes")
# Does not match "12e3", which may be a hexadecimal name.
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")


class CocoValues:
    """A reader of the values of one file, which counts deviations from the COCO format.

    Args:
        path: COCO JSON file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes: Counter[str] = Counter()

    def note(self, what: str) -> None:
        """Count one more case of the deviation `what`."""
        self._notes[what] += 1

    def notes(self) -> tuple[str, ...]:
        """Return one line per kind of deviation, with its count."""
        return tuple(f"{count} {what}" for what, count in self._notes.items())

    def where(self, item: Item) -> str:
        """Return a text that names an annotation in messages."""
        return f"COCO JSON {self.path}: annotation {reprlib.repr(item.get('id', ''))}".rstrip("'\" ")

    def integer(self, item: Item, key: str) -> int:
        """Read an id: an integer, or one written as text or as a float without fraction.

        Raises:
            DataError: The value is none of these.
        """
        value = item[key]
        if type(value) is int and abs(value) <= _LARGEST:
            return value
        number = _number(value)
        is_odd = isinstance(value, str) and not _WHOLE.fullmatch(value.strip())
        if number is None or is_odd or not number.is_integer() or abs(number) > _LARGEST:
            raise DataError(
                f"COCO JSON {self.path}: {key} is {reprlib.repr(value)}, expected an integer of at most 63 bits"
            )
        self.note("ids are written as text or with a decimal point; they were matched by their value")
        return int(value) if isinstance(value, str) and value.strip().isdigit() else int(number)

    def image_id(self, item: Item, key: str) -> int | str:
        """Read the id of an image, which some tools write as a name.

        Raises:
            DataError: The value is neither a name nor an integer.
        """
        value = item[key]
        if isinstance(value, str) and value.strip() and not _WHOLE.fullmatch(value.strip()):
            return value.strip()
        return self.integer(item, key)

    def file_name(self, item: Item) -> str:
        """Read the file name of an image.

        Raises:
            DataError: The value is not text, or empty.
        """
        value = item["file_name"] if "file_name" in item else item["coco_url"]
        if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_text(value):
            raise DataError(f"COCO JSON {self.path}: file_name is {reprlib.repr(value)}, expected the name of a file")
        return value

    def size(self, item: Item) -> tuple[int, int] | None:
        """Read height and width of an image; return None if they are missing or not positive numbers."""
        height, width = (_number(item.get(key)) for key in ("height", "width"))
        if height is None or width is None or not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST):
            self.note("images have no size in the JSON; their boxes were read as pixels of the file")
            return None
        return round(height), round(width)

    def box(self, item: Item) -> list[float]:
        """Read left, top, width and height of the box, or of the one around the segmentation if there is no box.

        Raises:
            DataError: The annotation has neither, or the box is not four finite numbers.
        """
        box = item.get("bbox")
        if (not box or box == [0, 0, 0, 0]) and item.get("segmentation"):
            self.note("annotations have no bbox; their boxes were computed from the segmentation")
            return self._box_of(item)
        if box is None:
            raise DataError(f"{self.where(item)} has no key 'bbox' and no segmentation; add it")
        numbers = [_number(value) for value in box] if isinstance(box, list) else []
        known = [value for value in numbers if value is not None and abs(value) <= _LARGEST]  # false for NaN
        if len(known) != 4 or len(numbers) != 4:
            raise DataError(
                f"{self.where(item)} has the bbox {reprlib.repr(box)}, expected four finite numbers "
                "(left, top, width, height)"
            )
        return known

    def area(self, item: Item) -> float:
        """Read the area in pixels; return NaN, for the area of the box, if there is none."""
        value = item.get("area")
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST:
            return float(value)
        self.note("annotations have no area above 0; the areas of their boxes are used")
        return math.nan

    def is_crowd(self, item: Item) -> bool:
        """Return whether an annotation marks a crowd, in any of the known spellings.

        Raises:
            DataError: The value is not a known spelling.
        """
        value = item.get("iscrowd")
        if value is None or value != value:  # NaN, which tables write for missing values
            return False
        text = str(value).strip().lower()
        if text not in (*_FALSE, *_TRUE):
            raise DataError(f"{self.where(item)} has iscrowd {reprlib.repr(value)}, expected 0 or 1")
        return text in _TRUE

    def _box_of(self, item: Item) -> list[float]:
        outline = item["segmentation"]
        try:
            return _mask_box(outline) if isinstance(outline, dict) else _polygon_box(outline)
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise DataError(
                f"{self.where(item)} has no bbox and a segmentation that is neither polygons nor RLE; add a bbox"
            ) from error


def _is_text(value: str) -> bool:
    """Return whether a text has no lone surrogate, which no file name contains."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _number(value: Any) -> float | None:
    """Return a number, which may be written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _polygon_box(polygons: Any) -> list[float]:
    """Return the box around polygons [[x, y, x, y, ...], ...], or around a single one [x, y, ...]."""
    parts = polygons if isinstance(polygons[0], list) else [polygons]
    points = np.concatenate([np.array(part, np.float64).reshape(-1, 2) for part in parts])
    if len(points) < 2 or not np.isfinite(points).all():
        raise ValueError("no polygon")
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _mask_box(mask: dict[str, Any]) -> list[float]:
    """Return the box around a run-length encoded mask, compressed or not."""
    from pycocotools import mask as masks

    height, width = mask["size"]
    if isinstance(mask["counts"], list):
        if sum(mask["counts"]) != height * width:
            raise ValueError("a mask of another size")
        mask = masks.frPyObjects(mask, height, width)
    return [float(value) for value in masks.toBbox(mask)]
