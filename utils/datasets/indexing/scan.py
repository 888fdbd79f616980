"""Scan of one image of a split: check its file, convert its boxes to displayed pixels, and clean them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from utils.boxes.boxes import cxcywh_to_xyxy, xyxy_to_ltwh
from utils.datasets.indexing.sources import Candidate
from utils.datasets.reading.annotations import Annotations, Array
from utils.datasets.reading.images import ImageFacts, check_image
from utils.datasets.reading.labels import LabelFaults, LabelFile, Labels, clean_labels, read_label_file
from utils.errors import DataError

# Tolerance for the logarithm of an aspect ratio, because sides are whole pixels.
_ROUNDING = 0.02


@dataclass(frozen=True, kw_only=True)
class ClassIds:
    """The mapping of class ids in labels to class ids of the data set.

    Attributes:
        num_classes: Number of classes.
        of_labels: Class id of each id in YOLO label files.
        single_cls: True to treat all classes as one.
    """

    num_classes: int
    of_labels: tuple[int, ...]
    single_cls: bool


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of scanning one candidate.

    Attributes:
        labels: Boxes to train on (n, 5) float32: class, cx, cy, w, h, normalised to [0, 1].
        truth: Same boxes and the crowd regions, in pixels of the upright image.
        faults: Counts of faulty boxes.
        ids: Class ids (m,) as written in the labels.
        hw: Height and width of the image as displayed.
        digest: Digest of the file, 16 bytes, equal for equal files.
        has_labels: True if there is a label file or a COCO JSON.
        num_outlines, num_confidences: Numbers of label lines with an outline and with a confidence.
        is_rescaled: True if the COCO JSON states another size.
        is_exchanged: True if the COCO JSON exchanges height and width.
        turn: Pixels that the boxes of a COCO JSON refer to, for an image with an EXIF rotation: "stored", before the
            rotation; "upright", after it; "unknown" if the size does not show which, and upright is assumed.
        fault: Reason why the image cannot be used; empty if it can.
    """

    labels: Labels
    truth: Annotations
    faults: LabelFaults = LabelFaults()  # noqa: RUF009 - immutable
    ids: tuple[int, ...] = ()
    hw: tuple[int, int] = (0, 0)
    digest: bytes = b""
    has_labels: bool = True
    num_outlines: int = 0
    num_confidences: int = 0
    is_rescaled: bool = False
    is_exchanged: bool = False
    turn: Literal["", "stored", "upright", "unknown"] = ""
    fault: str = ""

    def describe(self) -> str:
        """Return the faults of the image as text, empty for none (a background image is not a fault)."""
        if self.fault:
            return self.fault
        kinds = [kind.replace("_", " ") for kind, count in vars(self.faults).items() if count]
        kinds += ["size differs"] * self.is_rescaled + ["height for width"] * self.is_exchanged
        kinds += ["turned"] * (self.turn == "stored")
        return ", ".join(kinds)


def scan(candidate: Candidate, *, classes: ClassIds) -> Scan:
    """Check one image and read its boxes.

    Raises:
        DataError: The label file is malformed.
    """
    file = read_label_file(candidate.label_file) if candidate.label_file is not None else None
    nothing = Scan(labels=np.zeros((0, 5), np.float32), truth=Annotations.none())
    if not candidate.image.is_file():
        return _faulty(nothing, "missing")
    try:
        facts = check_image(candidate.image)
    except DataError as error:
        return _faulty(nothing, f"corrupt: {_reason(error)}")
    if candidate.annotations is not None:
        return _scan_json(candidate, candidate.annotations, facts, classes)
    return _scan_txt(file, facts, classes)


def _faulty(nothing: Scan, fault: str) -> Scan:
    return Scan(labels=nothing.labels, truth=nothing.truth, fault=fault)


def _reason(error: DataError) -> str:
    return str(error).partition("cannot be read: ")[2].partition("; replace")[0] or str(error)


def _scan_txt(file: LabelFile | None, facts: ImageFacts, classes: ClassIds) -> Scan:
    rows = np.zeros((0, 5)) if file is None else file.rows.copy()
    ids = rows[:, 0].astype(np.int64)
    is_known = (ids >= 0) & (ids < len(classes.of_labels))
    rows[is_known, 0] = np.array(classes.of_labels, np.float64)[ids[is_known]]
    clean = clean_labels(rows, num_classes=classes.num_classes, single_cls=classes.single_cls)
    ltwh = _pixels(rows[clean.kept, 1:], facts.hw)
    ltwh[clean.is_clipped] = _pixels(clean.labels[clean.is_clipped, 1:].astype(np.float64), facts.hw)
    count = len(ltwh)
    truth = Annotations(
        classes=clean.labels[:, 0].astype(np.int64),
        ltwh=ltwh,
        areas=np.full(count, np.nan),
        is_crowd=np.zeros(count, bool),
    )
    return Scan(
        labels=clean.labels,
        truth=truth.with_areas(),
        faults=clean.faults,
        ids=tuple(ids.tolist()),
        hw=facts.hw,
        digest=facts.digest,
        has_labels=file is not None,
        num_outlines=file.num_outlines if file else 0,
        num_confidences=file.num_confidences if file else 0,
    )


def _scan_json(candidate: Candidate, given: Annotations, facts: ImageFacts, classes: ClassIds) -> Scan:
    stored_hw = facts.hw[::-1] if facts.orientation >= 5 else facts.hw
    json_hw = candidate.hw or facts.hw
    is_exchanged = facts.orientation < 5 and _has_shape(json_hw[::-1], facts.hw) and not _has_shape(json_hw, facts.hw)
    json_hw = json_hw[::-1] if is_exchanged else json_hw
    turn = _turn(candidate, json_hw, stored_hw, facts)
    is_turned = turn == "stored"
    is_rescaled = json_hw != (stored_hw if is_turned else facts.hw)
    upright, rows = _upright(given, json_hw=json_hw, facts=facts, is_turned=is_turned)
    objects = np.flatnonzero(~upright.is_crowd)
    clean = clean_labels(rows[objects], num_classes=classes.num_classes, single_cls=classes.single_cls)
    kept = objects[clean.kept]
    ltwh = upright.ltwh.copy()
    clipped = kept[clean.is_clipped]
    ltwh[clipped] = _pixels(clean.labels[clean.is_clipped, 1:].astype(np.float64), facts.hw)
    crowds = np.flatnonzero(upright.is_crowd & (upright.ltwh[:, 2:] > 0).all(1) & (upright.classes >= 0))
    chosen = np.concatenate([kept, crowds])
    truth = Annotations(classes=upright.classes, ltwh=ltwh, areas=upright.areas, is_crowd=upright.is_crowd)[chosen]
    if classes.single_cls:
        truth = truth.of_class(np.zeros(len(truth), np.int64))
    return Scan(
        labels=clean.labels,
        truth=truth.with_areas(),
        faults=clean.faults,
        ids=tuple(given.classes.tolist()),
        hw=facts.hw,
        digest=facts.digest,
        is_rescaled=is_rescaled,
        is_exchanged=is_exchanged,
        turn=turn,
    )


def _turn(
    candidate: Candidate, json_hw: tuple[int, int], stored_hw: tuple[int, int], facts: ImageFacts
) -> Literal["", "stored", "upright", "unknown"]:
    if facts.orientation == 1:
        return ""
    if candidate.is_stored:
        return "stored"
    if candidate.hw is None or _has_shape(stored_hw, facts.hw):  # a flip, or a square
        return "unknown"
    return "stored" if _is_nearer(json_hw, stored_hw, facts.hw) else "upright"


def _has_shape(hw: tuple[int, int], like: tuple[int, int]) -> bool:
    """Return whether two sizes have the same aspect ratio, except for rounding."""
    return bool(abs(np.log(hw[0] / hw[1]) - np.log(like[0] / like[1])) < _ROUNDING)


def _is_nearer(hw: tuple[int, int], first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Return whether the aspect ratio of `hw` is nearer to that of `first` than of `second`."""
    shape, one, other = (np.log(height / width) for height, width in (hw, first, second))
    return bool(abs(shape - one) < abs(shape - other))


def _upright(
    given: Annotations, *, json_hw: tuple[int, int], facts: ImageFacts, is_turned: bool
) -> tuple[Annotations, Array]:
    """Convert boxes from the pixels of a JSON to those of the upright image.

    Returns:
        The boxes in pixels, and as rows (n, 5) class, cx, cy, w, h, normalised.
    """
    height, width = json_hw
    centres = given.ltwh.copy()
    centres[:, :2] += given.ltwh[:, 2:] / 2
    shares = centres / np.array([width, height, width, height], np.float64)
    if is_turned:
        shares = _turned(shares, facts.orientation)
    rows = np.column_stack([given.classes.astype(np.float64), shares])
    if json_hw == facts.hw and not is_turned:
        return given, rows  # exactly the numbers of the file
    scale = facts.hw[0] * facts.hw[1] / (height * width)
    return Annotations(
        classes=given.classes,
        ltwh=_pixels(shares, facts.hw),
        areas=given.areas * scale,
        is_crowd=given.is_crowd,
    ), rows


def _turned(shares: Array, orientation: int) -> Array:
    """Rotate normalised boxes (n, 4) cx, cy, w, h from stored pixels to upright ones; orientation is 2 to 8."""
    is_transposed = orientation >= 5
    cx, cy, w, h = shares[:, [1, 0, 3, 2] if is_transposed else [0, 1, 2, 3]].T
    if orientation in (2, 3, 6, 7):
        cx = 1 - cx
    if orientation in (3, 4, 7, 8):
        cy = 1 - cy
    return np.column_stack([cx, cy, w, h])


def _pixels(shares: Array, hw: tuple[int, int]) -> Array:
    """Convert normalised boxes (n, 4) cx, cy, w, h to left, top, width, height in pixels."""
    height, width = hw
    size = np.array([width, height, width, height], np.float64)
    return np.asarray(xyxy_to_ltwh(cxcywh_to_xyxy(shares * size)), np.float64)
