"""One label per object: YOLO txt files, and what is done about boxes that cannot be right."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import DataError

# (n, 5): class, cx, cy, w, h, normalised to [0, 1].
Labels = np.ndarray[Any, np.dtype[np.float32]]

_COLUMNS = 5
# Files are written with 6 decimals and by tools that round pixels; less than this is no mistake.
_OVERSHOOT = 1e-3


@dataclass(frozen=True, kw_only=True)
class LabelFaults:
    """How many boxes of one image were wrong, and how."""

    out_of_range: int = 0
    outside: int = 0
    duplicate: int = 0
    zero_area: int = 0


def label_path(image: str | Path) -> Path:
    """Where the labels of an image lie: the last folder `images` becomes `labels`; else beside the picture."""
    image = Path(image)
    parts = list(image.parts)
    for position in range(len(parts) - 2, -1, -1):
        if parts[position] == "images":
            parts[position] = "labels"
            mirrored = Path(*parts).with_suffix(".txt")
            beside = image.with_suffix(".txt")
            return beside if beside.exists() and not mirrored.exists() else mirrored
    return image.with_suffix(".txt")


def read_label_file(path: str | Path) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Read the lines `class cx cy w h` of a YOLO txt.

    Returns:
        (n, 5) as written, not yet checked against classes and borders; None if there is no such file.

    Raises:
        DataError: Text, a number that is not finite, a class id that is no integer, or other than 5 columns.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"label file {path} cannot be read as text: {error}; replace or remove it") from error
    rows = [_parse_line(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    return np.array(rows, np.float64).reshape(-1, _COLUMNS)


def _parse_line(line: str, path: str | Path, number: int) -> list[float]:
    where = f"label file {os.fspath(path)}, line {number}"
    columns = line.split()
    if len(columns) != _COLUMNS:
        raise DataError(f"{where}: {len(columns)} columns, expected 5 (class cx cy w h); correct the line")
    try:
        values = [float(column) for column in columns]
    except ValueError:
        raise DataError(f"{where}: {line.strip()!r} is not five numbers; correct the line") from None
    if not np.isfinite(values).all():
        raise DataError(f"{where}: {line.strip()!r} has a number that is not finite; correct the line")
    if values[0] != int(values[0]):
        raise DataError(f"{where}: class id {columns[0]} is not an integer; correct the line")
    return values


def clean_labels(
    rows: np.ndarray[Any, np.dtype[np.float64]], *, num_classes: int, single_cls: bool = False
) -> tuple[Labels, LabelFaults]:
    """Clip boxes to the image; drop unknown classes, boxes without area, and exact duplicates.

    Args:
        rows: (n, 5) class, cx, cy, w, h, normalised, finite.
        num_classes: Ids from 0 to this are known.
        single_cls: Make every class 0 once unknown ones are gone.

    Returns:
        The labels that stay, in their order, and the counts of those that were wrong.
    """
    is_known = (rows[:, 0] >= 0) & (rows[:, 0] < num_classes)
    known = rows[is_known].copy()
    corners = cxcywh_to_xyxy(known[:, 1:])
    overshoot = np.maximum(-corners, corners - 1).max(1, initial=0)
    beyond = overshoot > 0
    # Untouched rows keep their exact numbers.
    known[beyond, 1:] = xyxy_to_cxcywh(corners[beyond].clip(0, 1))
    if single_cls:
        known[:, 0] = 0
    labels = known.astype(np.float32)
    has_area = (corners[:, 2:] > corners[:, :2]).all(1) & (labels[:, 3:] > 0).all(1)
    solid = labels[has_area]
    first = np.sort(np.unique(solid, axis=0, return_index=True)[1])
    faults = LabelFaults(
        out_of_range=int((~is_known).sum()),
        outside=int((overshoot > _OVERSHOOT).sum()),
        duplicate=len(solid) - len(first),
        zero_area=int((~has_area).sum()),
    )
    return solid[first], faults
