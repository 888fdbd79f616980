"""The label index: every usable image of a split with its size and boxes, read once and cached in a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from utils.datasets.indexing.cache import cache_file, content_key, load_index_parts, save_index_parts
from utils.datasets.indexing.config import DataConfig
from utils.datasets.indexing.scan import ClassIds, Scan, scan
from utils.datasets.indexing.sources import Candidate, Listing, image_ids, list_candidates
from utils.datasets.indexing.summary import IndexSummary
from utils.datasets.reading.annotations import Annotations
from utils.datasets.reading.labels import Labels
from utils.errors import DataError
from utils.progress import progress

logger = logging.getLogger(__name__)

_MAX_EXAMPLES = 5
_NAME_OF_ONE = "item"

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class LabelIndex:
    """Every usable image of a split, with the facts that are known without decoding it.

    Attributes:
        paths: Image files.
        file_names: Name of each image in its COCO JSON, or its path below the folder or list that names it.
        labels: Boxes per image (n, 5) float32: class, cx, cy, w, h, normalised to [0, 1]; without crowd regions.
        truth: Boxes per image in pixels, with crowd regions, for evaluation.
        shapes_hw: Height and width (N, 2) int64 of the image as displayed.
        image_ids: Ids in the COCO JSON; else the numbers that files are named by, if all are; else positions.
        category_ids: Id of each class in the COCO JSON, or COCO's own; else 0, 1, ...
        names: Class names, in order of class ids.
        digests: Digest per image, 16 bytes, equal for equal files.
        is_labelled: True if the data set has labels, even empty ones.
        summary: Counts of the faults found.
    """

    paths: tuple[str, ...]
    file_names: tuple[str, ...]
    labels: tuple[Labels, ...]
    truth: tuple[Annotations, ...]
    shapes_hw: np.ndarray[Any, np.dtype[np.int64]]
    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    digests: tuple[bytes, ...]
    is_labelled: bool
    summary: IndexSummary

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def inputs(self) -> list[tuple[Path, Path]]:
        """Every image with the folder that it was listed below, which output names leave out.

        For a name that is absolute or leads upwards, the common folder of all images takes its place.
        """
        places = [Path(os.path.abspath(path)) for path in self.paths]
        common = os.path.commonpath([place.parent for place in places]) if places else ""
        below = []
        for path, place, name in zip(self.paths, places, self.file_names, strict=True):
            parts = Path(os.path.normpath(name)).parts
            start = place.parts[: -len(parts)]
            is_below = bool(start) and place.parts[len(start) :] == parts
            below.append((Path(path), Path(*start) if is_below else Path(common)))
        return below

    @property
    def num_boxes(self) -> int:
        """Number of boxes, without crowd regions."""
        return sum(len(labels) for labels in self.labels)

    def select(self, positions: Sequence[int]) -> LabelIndex:
        """Return the index of the images at these positions, in their order; `summary` stays that of all."""

        def chosen(items: tuple[_Item, ...]) -> tuple[_Item, ...]:
            return tuple(items[position] for position in positions)

        return replace(
            self,
            paths=chosen(self.paths),
            file_names=chosen(self.file_names),
            labels=chosen(self.labels),
            truth=chosen(self.truth),
            shapes_hw=self.shapes_hw[list(positions)],
            image_ids=chosen(self.image_ids),
            digests=chosen(self.digests),
        )


def build_label_index(
    config: DataConfig,
    split: str,
    *,
    cache_dir: str | Path | None = None,
    workers: int = 8,
    single_cls: bool = False,
) -> LabelIndex:
    """Read the labels of a split and check every image, in parallel; log all faults.

    The result is cached in a file beside the labels (`<labels folder>.index.cache`) or in `cache_dir`. It is reused
    as long as the content of the label files and the path, size and modification time of every image are the same.

    Args:
        config: Data set.
        split: "train", "val" or "test".
        cache_dir: Folder of the cache file; None for beside the labels.
        workers: Number of threads that read and decode.
        single_cls: Whether to treat all objects as one class.

    Raises:
        DataError: The split or its files are missing, a label file or COCO JSON is malformed, or no image is usable.
    """
    listing = list_candidates(config, split)
    settings = f"{config.names} {config.label_names} {single_cls} {listing.category_ids} {listing.notes}"
    key = content_key(listing.candidates, extra_files=listing.json_files, settings=settings)
    file = cache_file(listing.anchor, cache_dir)
    index = _from_cache(file, key)
    if index is None:
        index = _assemble(listing, _scan_all(listing, config, workers=workers, single_cls=single_cls), config)
        save_index_parts(file, key, _to_parts(index))
    if single_cls:
        names = config.names if config.num_classes == 1 else (_NAME_OF_ONE,)
        index = replace(index, names=names, category_ids=(listing.category_ids[0] if config.num_classes == 1 else 0,))
    logger.info("%s: %s", split, index.summary.as_text())
    if not len(index):
        raise DataError(
            f"{config.path}: {split} has no usable image among {len(listing.candidates)} listed; check the paths"
            f"{_first_fault(index.summary)}"
        )
    if index.num_boxes and index.summary.is_suspect:
        dropped = f"{index.summary.dropped} boxes were dropped: " if index.summary.dropped else ""
        logger.warning("%s: %s%s", split, dropped, index.summary.guess())
    return index


def _first_fault(summary: IndexSummary) -> str:
    return f" (e.g. {summary.examples[0]})" if summary.examples else ""


def _scan_all(listing: Listing, config: DataConfig, *, workers: int, single_cls: bool) -> list[Scan]:
    classes = ClassIds(num_classes=config.num_classes, of_labels=config.label_classes, single_cls=single_cls)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        scans = pool.map(partial(scan, classes=classes), listing.candidates)
        found = [next(scans) for _ in progress(listing.candidates, description="checking images")]
    return _turned_alike(listing.candidates, found, classes)


def _turned_alike(candidates: Sequence[Candidate], scans: Sequence[Scan], classes: ClassIds) -> list[Scan]:
    """Rotate the boxes of flipped and square images if those of the other images of their JSON are rotated.

    The size of such an image does not show whether its boxes refer to pixels before or after the EXIF rotation.
    """
    pairs = list(zip(candidates, scans, strict=True))
    upright = {candidate.json_file for candidate, found in pairs if found.turn == "upright"}
    stored = {candidate.json_file for candidate, found in pairs if found.turn == "stored"} - upright
    return [
        scan(replace(candidate, is_stored=True), classes=classes)
        if found.turn == "unknown" and candidate.json_file in stored
        else found
        for candidate, found in pairs
    ]


def _assemble(listing: Listing, scans: Sequence[Scan], config: DataConfig) -> LabelIndex:
    used = [(candidate, found) for candidate, found in zip(listing.candidates, scans, strict=True) if not found.fault]
    return LabelIndex(
        paths=tuple(str(candidate.image) for candidate, _ in used),
        file_names=tuple(candidate.file_name for candidate, _ in used),
        labels=tuple(found.labels for _, found in used),
        truth=tuple(found.truth for _, found in used),
        shapes_hw=np.array([found.hw for _, found in used], np.int64).reshape(-1, 2),
        image_ids=image_ids([candidate for candidate, _ in used]),
        category_ids=listing.category_ids,
        names=config.names,
        digests=tuple(found.digest for _, found in used),
        is_labelled=listing.is_labelled,
        summary=_summarise(listing, scans, num_classes=config.num_classes),
    )


def _summarise(listing: Listing, scans: Sequence[Scan], *, num_classes: int) -> IndexSummary:
    used = [found for found in scans if not found.fault]
    pairs: list[tuple[Candidate, Scan]] = list(zip(listing.candidates, scans, strict=True))
    examples = [f"{candidate.image} ({found.describe()})" for candidate, found in pairs if found.describe()]
    ids = [number for found in used for number in found.ids]
    missing = sum(found.fault == "missing" for found in scans)
    return IndexSummary(
        images=len(used),
        boxes=sum(len(found.labels) for found in used),
        missing_images=missing,
        corrupt_images=len(scans) - len(used) - missing,
        missing_labels=sum(not found.has_labels for found in used),
        empty_labels=sum(found.has_labels and not len(found.truth) for found in used) if listing.is_labelled else 0,
        repeated_images=len(used) - len({found.digest for found in used}),
        size_differs=sum(found.is_rescaled for found in used),
        exchanged=sum(found.is_exchanged for found in used),
        turned=sum(found.turn == "stored" for found in used),
        out_of_range=sum(found.faults.out_of_range for found in used),
        outside=sum(found.faults.outside for found in used),
        duplicate=sum(found.faults.duplicate for found in used),
        zero_area=sum(found.faults.zero_area for found in used),
        crowd=sum(int(found.truth.is_crowd.sum()) for found in used),
        outlines=sum(found.num_outlines for found in used),
        confidences=sum(found.num_confidences for found in used),
        least_class=min(ids, default=-1),
        largest_class=max(ids, default=-1),
        num_classes=num_classes,
        notes=listing.notes,
        examples=tuple(examples[:_MAX_EXAMPLES]),
    )


def _to_parts(index: LabelIndex) -> dict[str, Any]:
    """Return the index as arrays and plain data, for the cache file."""
    return {
        "paths": list(index.paths),
        "file_names": list(index.file_names),
        "counts": np.array([len(labels) for labels in index.labels], np.int64),
        "labels": np.concatenate([*index.labels, np.zeros((0, 5), np.float32)]),
        "truth_counts": np.array([len(truth) for truth in index.truth], np.int64),
        "truth": np.concatenate([np.zeros((0, 7)), *(truth.to_rows() for truth in index.truth)]),
        "shapes_hw": index.shapes_hw,
        "image_ids": np.array(index.image_ids, np.int64),
        "category_ids": np.array(index.category_ids, np.int64),
        "names": list(index.names),
        "digests": [digest.hex() for digest in index.digests],
        "is_labelled": index.is_labelled,
        "summary": vars(index.summary),
    }


def _from_cache(file: Path, key: str) -> LabelIndex | None:
    parts = load_index_parts(file, key)
    if parts is None:
        return None
    summary = parts["summary"]
    return LabelIndex(
        paths=tuple(parts["paths"]),
        file_names=tuple(parts["file_names"]),
        labels=_split(parts["labels"], parts["counts"]),
        truth=tuple(Annotations.from_rows(rows) for rows in _split(parts["truth"], parts["truth_counts"])),
        shapes_hw=parts["shapes_hw"],
        image_ids=tuple(parts["image_ids"].tolist()),
        category_ids=tuple(parts["category_ids"].tolist()),
        names=tuple(parts["names"]),
        digests=tuple(bytes.fromhex(digest) for digest in parts["digests"]),
        is_labelled=parts["is_labelled"],
        summary=IndexSummary(**{**summary, "notes": tuple(summary["notes"]), "examples": tuple(summary["examples"])}),
    )


def _split(rows: Labels, counts: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Labels, ...]:
    """Split concatenated rows into those of each image."""
    return tuple(np.split(rows, np.cumsum(counts)[:-1])) if len(counts) else ()
