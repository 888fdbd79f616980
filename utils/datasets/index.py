"""The label index: every usable image of a split, its size and its boxes, read once and kept in a cache file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.config import DataConfig
from utils.datasets.images import image_hw
from utils.datasets.index_cache import cache_file, content_key, load_index_parts, save_index_parts
from utils.datasets.index_sources import Candidate, list_candidates
from utils.datasets.index_summary import IndexSummary
from utils.datasets.labels import LabelFaults, Labels, clean_labels, read_label_file
from utils.errors import DataError

logger = logging.getLogger(__name__)

_MAX_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class LabelIndex:
    """Every usable image of a split, and what is known of it without decoding it.

    Attributes:
        paths: Image files.
        labels: Per image (n, 5) float32: class, cx, cy, w, h, normalised to [0, 1].
        shapes_hw: (N, 2) int64 height and width as people see the image.
        image_ids: Those of the COCO JSON; else the number a file is named by, if all are; else the position.
        category_ids: Id of each class in the COCO JSON; 0, 1, ... for txt labels.
        names: Class names.
        coco: The COCO JSON all of this came from; None for txt labels, several sources, or a single class.
        summary: What was wrong.
    """

    paths: tuple[str, ...]
    labels: tuple[Labels, ...]
    shapes_hw: np.ndarray[Any, np.dtype[np.int64]]
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    coco: Path | None
    summary: IndexSummary

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, kw_only=True)
class _Scan:
    """What reading one candidate gave; `fault` says why it cannot be used."""

    labels: Labels
    faults: LabelFaults
    hw: tuple[int, int] = (0, 0)
    has_label_file: bool = True
    fault: str = ""


def build_label_index(
    config: DataConfig,
    split: str,
    *,
    cache_dir: str | Path | None = None,
    workers: int = 8,
    single_cls: bool = False,
) -> LabelIndex:
    """Read the labels of a split and the size of every image, in parallel; log what was wrong.

    The result is kept in a cache file beside the labels (`<labels folder>.index.cache`) or in `cache_dir`. It is
    used again while the label files hold the same, and path, size and modification time of every image are the same.

    Args:
        config: The data set.
        split: "train", "val" or "test".
        cache_dir: Where the cache file goes instead.
        workers: Threads; decoding and reading run beside each other.
        single_cls: Take all objects as one class.

    Raises:
        DataError: The split or its files are missing, a label file or COCO JSON is malformed, or no image is usable.
    """
    listing = list_candidates(config, split)
    settings = f"{config.names} {single_cls} {listing.category_ids}"
    key = content_key(listing.candidates, extra_files=listing.json_files, settings=settings)
    file = cache_file(listing.anchor, cache_dir)
    index = _from_cache(file, key)
    if index is None:
        clean = partial(_scan, num_classes=config.num_classes, single_cls=single_cls)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            scans = list(pool.map(clean, listing.candidates))
        index = _assemble(listing.candidates, scans, names=config.names, category_ids=listing.category_ids)
        save_index_parts(file, key, _to_parts(index))
    index = replace(index, coco=listing.coco)
    if single_cls:
        names = config.names if config.num_classes == 1 else ("item",)
        index = replace(index, coco=None, names=names, category_ids=(0,))
    logger.info("%s: %s", split, index.summary.as_text())
    if not len(index):
        raise DataError(
            f"{config.path}: {split} has no usable image among {len(listing.candidates)} listed; check the paths"
        )
    return index


def _scan(candidate: Candidate, *, num_classes: int, single_cls: bool) -> _Scan:
    """Read one image's size and labels.

    Raises:
        DataError: Its label file is malformed.
    """
    rows = candidate.rows if candidate.label_file is None else read_label_file(candidate.label_file)
    has_label_file = rows is not None
    labels, faults = clean_labels(
        np.zeros((0, 5)) if rows is None else rows, num_classes=num_classes, single_cls=single_cls
    )
    if not candidate.image.is_file():
        return _Scan(labels=labels, faults=faults, fault="missing")
    try:
        hw = image_hw(candidate.image)
    except DataError:
        return _Scan(labels=labels, faults=faults, fault="corrupt")
    return _Scan(labels=labels, faults=faults, hw=hw, has_label_file=has_label_file)


def _assemble(
    candidates: Sequence[Candidate],
    scans: Sequence[_Scan],
    *,
    names: tuple[str, ...],
    category_ids: tuple[int, ...],
) -> LabelIndex:
    used = [(candidate, scan) for candidate, scan in zip(candidates, scans, strict=True) if not scan.fault]
    return LabelIndex(
        paths=tuple(str(candidate.image) for candidate, _ in used),
        labels=tuple(scan.labels for _, scan in used),
        shapes_hw=np.array([scan.hw for _, scan in used], np.int64).reshape(-1, 2),
        image_ids=_image_ids([candidate for candidate, _ in used]),
        category_ids=category_ids,
        names=names,
        coco=None,
        summary=_summarise(candidates, scans),
    )


def _image_ids(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    given = [candidate.image_id for candidate in candidates]
    ids = [value for value in given if value is not None]
    if len(ids) == len(given):
        return tuple(ids)
    stems = [candidate.image.stem for candidate in candidates]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = tuple(int(stem) for stem in stems)
        if len(set(numbers)) == len(numbers):
            return numbers
    return tuple(range(len(candidates)))


def _summarise(candidates: Sequence[Candidate], scans: Sequence[_Scan]) -> IndexSummary:
    used = [(candidate, scan) for candidate, scan in zip(candidates, scans, strict=True) if not scan.fault]
    examples = [
        f"{candidate.image} ({_describe(candidate, scan)})"
        for candidate, scan in zip(candidates, scans, strict=True)
        if _describe(candidate, scan)
    ]
    missing = sum(scan.fault == "missing" for scan in scans)
    return IndexSummary(
        images=len(used),
        boxes=sum(len(scan.labels) for _, scan in used),
        missing_images=missing,
        corrupt_images=len(scans) - len(used) - missing,
        missing_labels=sum(not scan.has_label_file for _, scan in used),
        empty_labels=sum(scan.has_label_file and not len(scan.labels) for _, scan in used),
        size_differs=sum(candidate.hw not in (None, scan.hw) for candidate, scan in used),
        out_of_range=sum(scan.faults.out_of_range for _, scan in used),
        outside=sum(scan.faults.outside for _, scan in used),
        duplicate=sum(scan.faults.duplicate for _, scan in used),
        zero_area=sum(scan.faults.zero_area for _, scan in used),
        crowd=sum(candidate.num_crowd for candidate, _ in used),
        examples=tuple(examples[:_MAX_EXAMPLES]),
    )


def _describe(candidate: Candidate, scan: _Scan) -> str:
    """What is wrong with one image, "" for nothing (a background image is no fault)."""
    if scan.fault:
        return scan.fault
    kinds = [kind.replace("_", " ") for kind, count in vars(scan.faults).items() if count]
    if candidate.hw not in (None, scan.hw):
        kinds.append("size differs")
    return ", ".join(kinds)


def _to_parts(index: LabelIndex) -> dict[str, Any]:
    """The index as numbers and text, for the cache file."""
    return {
        "paths": list(index.paths),
        "counts": np.array([len(labels) for labels in index.labels], np.int64),
        "labels": np.concatenate([*index.labels, np.zeros((0, 5), np.float32)]),
        "shapes_hw": index.shapes_hw,
        "image_ids": np.array(index.image_ids, np.int64),
        "category_ids": np.array(index.category_ids, np.int64),
        "names": list(index.names),
        "summary": vars(index.summary),
    }


def _from_cache(file: Path, key: str) -> LabelIndex | None:
    parts = load_index_parts(file, key)
    if parts is None:
        return None
    ends = np.cumsum(parts["counts"])
    summary = parts["summary"]
    return LabelIndex(
        paths=tuple(parts["paths"]),
        labels=tuple(np.split(parts["labels"], ends[:-1])) if len(ends) else (),
        shapes_hw=parts["shapes_hw"],
        image_ids=tuple(parts["image_ids"].tolist()),
        category_ids=tuple(parts["category_ids"].tolist()),
        names=tuple(parts["names"]),
        coco=None,
        summary=IndexSummary(**{**summary, "examples": tuple(summary["examples"])}),
    )
