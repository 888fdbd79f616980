"""Reader of YOLO txt labels, and cleaning of faulty boxes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from utils.errors import DataError
from utils.storage.files import decode_text

# (n, 5): class, cx, cy, w, h, normalised to [0, 1].
Labels = np.ndarray[Any, np.dtype[np.float32]]

Rows = np.ndarray[Any, np.dtype[np.float64]]

# Files are written with 6 decimals and by tools that round pixels; a smaller overshoot is not a mistake.
OVERSHOOT = 1e-3
# A coordinate above this is not an inexact fraction of the image, but in pixels or per cent.
_LARGEST_SHARE = 2.0


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """The content of a YOLO txt.

    Attributes:
        rows: Boxes (n, 5) float64 class, cx, cy, w, h as written, not yet checked against classes and borders.
        num_outlines: Number of lines with a polygon or keypoints, of which only the box is used.
        num_confidences: Number of lines that end with a confidence, which is ignored.
    """

    rows: Rows
    num_outlines: int = 0
    num_confidences: int = 0


@dataclass(frozen=True, kw_only=True)
class LabelFaults:
    """Counts of the faulty boxes of one image by kind of fault, as in `IndexSummary`."""

    out_of_range: int = 0
    outside: int = 0
    duplicate: int = 0
    zero_area: int = 0


def label_path(image: str | Path) -> Path:
    """Return the label file of an image: in `labels` in place of the last folder `images`, else beside the image."""
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

    A line is `class cx cy w h`, normalised to the image. It may end with a confidence, which is ignored. Lines of
    other tasks also give a box: the one around a polygon (`class x1 y1 x2 y2 x3 y3 ...`), or the one before keypoints
    (`class cx cy w h x y visibility ...`).

    Returns:
        The content of the file; None if it does not exist.

    Raises:
        DataError: A line contains text, a number that is not finite, a class id that is not an integer, coordinates
            in pixels, or a number of columns that no kind of line has.
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
    """One line of a label file; `box` is cx, cy, w, h."""

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
            "optionally a confidence from 0 to 1; correct the line"
        )
    raise DataError(
        f"{where}: {max(values, key=abs):g} is not a fraction of the image; coordinates must be normalised: divide "
        "those in pixels by the image's width and height"
    )


def _parse_values(class_id: float, values: list[float]) -> _Line:
    """Separate the box of a line from polygon, keypoints and confidence."""
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
    """Return whether the values are a box followed by points with a visibility (0, 1 or 2)."""
    is_box = values[2] > 0 and values[3] > 0
    return is_box and (len(values) - 4) % 3 == 0 and all(value in (0, 1, 2) for value in values[6::3])


@dataclass(frozen=True, kw_only=True)
class CleanLabels:
    """The usable labels of one image.

    Attributes:
        labels: Boxes (m, 5) float32 class, cx, cy, w, h, inside the image.
        kept: Indices (m,) int64 of the rows that they come from.
        is_clipped: Mask (m,) bool of boxes that extended beyond the image by more than rounding.
        faults: Counts of the faulty boxes.
    """

    labels: Labels
    kept: np.ndarray[Any, np.dtype[np.int64]]
    is_clipped: np.ndarray[Any, np.dtype[np.bool_]]
    faults: LabelFaults


def clean_labels(rows: Rows, *, num_classes: int, single_cls: bool = False) -> CleanLabels:
    """Clip boxes to the image; drop unknown classes, boxes without area, and exact duplicates.

    Args:
        rows: Boxes (n, 5) class, cx, cy, w, h, normalised, finite.
        num_classes: Number of classes; ids from 0 to below it are known.
        single_cls: Whether to set every class to 0 after dropping unknown ones.
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
