"""Single values of a COCO JSON as tools really write them: ids as text, missing areas, boxes that are outlines."""

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
# Not "12e3", as hexadecimal names may read.
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")


class CocoValues:
    """Reads values of one file, and counts what was not as COCO has it.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._notes: Counter[str] = Counter()

    def note(self, what: str) -> None:
        """Count one more case of `what`."""
        self._notes[what] += 1

    def notes(self) -> tuple[str, ...]:
        """Return one line per kind of case."""
        return tuple(f"{count} {what}" for what, count in self._notes.items())

    def where(self, item: Item) -> str:
        """Name an annotation in a message."""
        return f"COCO JSON {self.path}: annotation {reprlib.repr(item.get('id', ''))}".rstrip("'\" ")

    def integer(self, item: Item, key: str) -> int:
        """Read an id: an integer, also as text or as a float without a fraction.

        Raises:
            DataError: It is nothing of that.
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
            DataError: It is neither a name nor an integer.
        """
        value = item[key]
        if isinstance(value, str) and value.strip() and not _WHOLE.fullmatch(value.strip()):
            return value.strip()
        return self.integer(item, key)

    def file_name(self, item: Item) -> str:
        """Read the file name of an image.

        Raises:
            DataError: It is no text, or empty.
        """
        value = item["file_name"] if "file_name" in item else item["coco_url"]
        if not isinstance(value, str) or not value.strip() or "\0" in value or not _is_text(value):
            raise DataError(f"COCO JSON {self.path}: file_name is {reprlib.repr(value)}, expected the name of a file")
        return value

    def size(self, item: Item) -> tuple[int, int] | None:
        """Read height and width of an image; None where they are missing or no size."""
        height, width = (_number(item.get(key)) for key in ("height", "width"))
        if height is None or width is None or not (1 <= height <= _LARGEST and 1 <= width <= _LARGEST):
            self.note("images have no size in the JSON; the boxes were taken to be in pixels of the file")
            return None
        return round(height), round(width)

    def box(self, item: Item) -> list[float]:
        """Read left, top, width and height; where there is no box, that around the segmentation.

        Raises:
            DataError: There is neither, or the box is not four finite numbers.
        """
        box = item.get("bbox")
        if (not box or box == [0, 0, 0, 0]) and item.get("segmentation"):
            self.note("annotations have no bbox; it was taken from the segmentation")
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
        """Read the area in pixels; NaN where the box is to stand for it."""
        value = item.get("area")
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST:
            return float(value)
        self.note("annotations have no area that is a number above 0; their boxes stand for it")
        return math.nan

    def is_crowd(self, item: Item) -> bool:
        """Read whether an annotation marks a crowd, however that is written.

        Raises:
            DataError: It is written as nothing known.
        """
        value = item.get("iscrowd")
        if value is None or value != value:  # NaN, as tables write what is missing
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
    """Return whether a text has no half of a surrogate pair, which no file is named by."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _number(value: Any) -> float | None:
    """Return a number that may be written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _polygon_box(polygons: Any) -> list[float]:
    """Return the box around [[x, y, x, y, ...], ...], or around one polygon alone."""
    parts = polygons if isinstance(polygons[0], list) else [polygons]
    points = np.concatenate([np.array(part, np.float64).reshape(-1, 2) for part in parts])
    if len(points) < 2 or not np.isfinite(points).all():
        raise ValueError("no polygon")
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _mask_box(mask: dict[str, Any]) -> list[float]:
    """Return the box around a run-length encoded mask, packed or not."""
    from pycocotools import mask as masks

    height, width = mask["size"]
    if isinstance(mask["counts"], list):
        if sum(mask["counts"]) != height * width:
            raise ValueError("a mask of another size")
        mask = masks.frPyObjects(mask, height, width)
    return [float(value) for value in masks.toBbox(mask)]
