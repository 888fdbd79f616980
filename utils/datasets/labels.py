"""One label per object: YOLO txt files, and what is done about boxes that cannot be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import DataError
from utils.files import decode_text

# (n, 5): class, cx, cy, w, h, normalised to [0, 1].
Labels = np.ndarray[Any, np.dtype[np.float32]]

Rows = np.ndarray[Any, np.dtype[np.float64]]

# Files are written with 6 decimals and by tools that round pixels; less than this is no mistake.
OVERSHOOT = 1e-3
# Beyond it a coordinate is no sloppy share of the image, but pixels or per cent.
_LARGEST_SHARE = 2.0


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """Content of a YOLO txt.

    Attributes:
        rows: (n, 5) float64 class, cx, cy, w, h as written, not yet checked against classes and borders.
        num_outlines: Lines that give a polygon or keypoints, of which the box was taken.
        num_confidences: Lines that end with a confidence, which was left out.
    """

    rows: Rows
    num_outlines: int = 0
    num_confidences: int = 0


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


def read_label_file(path: str | Path) -> LabelFile | None:
    """Read a YOLO txt.

    A line is `class cx cy w h`, normalised to the image. It may end with a confidence, which is left out. Lines of
    other tasks give a box too: that around a polygon (`class x1 y1 x2 y2 x3 y3 ...`), or the one before keypoints
    (`class cx cy w h x y visibility ...`).

    Returns:
        The lines; None if there is no such file.

    Raises:
        DataError: Text, a number that is not finite, a class id that is no integer, coordinates in pixels, or a
            number of columns that no such line has.
    """
    try:
        lines = decode_text(Path(path).read_bytes()).splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"label file {path} cannot be read as text: {error}; replace or remove it") from error
    parsed = [
        _parse_line(line, where=f"label file {path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    return LabelFile(
        rows=np.array([[line.class_id, *line.box] for line in parsed], np.float64).reshape(-1, 5),
        num_outlines=sum(line.is_outline for line in parsed),
        num_confidences=sum(line.has_confidence for line in parsed),
    )


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line: `box` is cx, cy, w, h."""

    class_id: float
    box: tuple[float, float, float, float]
    is_outline: bool = False
    has_confidence: bool = False


def _parse_line(line: str, *, where: str) -> _Line:
    columns = line.split()
    try:
        class_id, *values = (float(column) for column in columns)
    except ValueError:
        raise DataError(f"{where}: {_shortened(line)!r} is not all numbers; correct the line") from None
    if not np.isfinite([class_id, *values]).all():
        raise DataError(f"{where}: {_shortened(line)!r} has a number that is not finite; correct the line")
    if class_id != int(class_id):
        raise DataError(f"{where}: class id {columns[0]} is not an integer; correct the line")
    if len(values) < 4:
        raise DataError(f"{where}: {len(columns)} columns, expected 5 (class cx cy w h); correct the line")
    parsed = _parse_values(class_id, values)
    has_odd_confidence = parsed.has_confidence and not 0 <= values[-1] <= 1
    if has_odd_confidence or max(map(abs, parsed.box)) > _LARGEST_SHARE:
        _refuse_values(values, has_odd_confidence, where=where)
    return parsed


def _shortened(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 80 else f"{line[:80]}..."


def _refuse_values(values: list[float], has_odd_confidence: bool, *, where: str) -> None:
    if has_odd_confidence and max(map(abs, values[:4])) <= _LARGEST_SHARE:
        raise DataError(
            f"{where}: {len(values) + 1} columns and {values[-1]:g} at the end, expected 5 (class cx cy w h) and "
            "perhaps a confidence from 0 to 1; correct the line"
        )
    raise DataError(
        f"{where}: {max(values, key=abs):g} is no share of the image; coordinates are normalised: divide those in "
        "pixels by the image's width and height"
    )


def _parse_values(class_id: float, values: list[float]) -> _Line:
    """Take the box of a line apart from what else it gives."""
    if len(values) <= 5:
        return _Line(class_id=class_id, box=_four(values), has_confidence=len(values) == 5)
    if _are_keypoints(values):
        return _Line(class_id=class_id, box=_four(values), is_outline=True)
    has_confidence = len(values) % 2 == 1
    points = np.reshape(values[: len(values) - has_confidence], (-1, 2))
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    box = ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)
    return _Line(class_id=class_id, box=box, is_outline=True, has_confidence=has_confidence)


def _four(values: list[float]) -> tuple[float, float, float, float]:
    cx, cy, width, height = values[:4]
    return cx, cy, width, height


def _are_keypoints(values: list[float]) -> bool:
    """Return whether a box and points with a visibility (0, 1 or 2) follow each other."""
    is_box = values[2] > 0 and values[3] > 0
    return is_box and (len(values) - 4) % 3 == 0 and all(value in (0, 1, 2) for value in values[6::3])


@dataclass(frozen=True, kw_only=True)
class CleanLabels:
    """The labels of one image that can be right.

    Attributes:
        labels: (m, 5) float32 class, cx, cy, w, h, inside the image.
        kept: (m,) int64 rows that they come from.
        is_clipped: (m,) bool, whether a box left the image by more than rounding.
        faults: Counts of those that were wrong.
    """

    labels: Labels
    kept: np.ndarray[Any, np.dtype[np.int64]]
    is_clipped: np.ndarray[Any, np.dtype[np.bool_]]
    faults: LabelFaults


def clean_labels(rows: Rows, *, num_classes: int, single_cls: bool = False) -> CleanLabels:
    """Clip boxes to the image; drop unknown classes, boxes without area, and exact duplicates.

    Args:
        rows: (n, 5) class, cx, cy, w, h, normalised, finite.
        num_classes: Ids from 0 to this are known.
        single_cls: Make every class 0 once unknown ones are gone.
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
        outside=int((overshoot > OVERSHOOT).sum()),
        duplicate=len(solid) - len(first),
        zero_area=int((~has_area).sum()),
    )
    return CleanLabels(
        labels=solid[first],
        kept=np.flatnonzero(is_known)[has_area][first],
        is_clipped=(overshoot > OVERSHOOT)[has_area][first],
        faults=faults,
    )
