"""Checks, before hours of training, that a data set has boxes to learn from and to measure on."""

from __future__ import annotations

import glob
import logging
from itertools import islice
from pathlib import Path

from utils.datasets.indexing.index import LabelIndex
from utils.errors import DataError

logger = logging.getLogger(__name__)

# Folders above an image that are searched for its labels, to report where they are.
_LEVELS = 4
# Images whose labels are searched for.
_MOST_TRIED = 20


def check_trainable(index: LabelIndex, *, where: str) -> None:
    """Refuse a training split without boxes, and report the likely cause.

    Args:
        index: Label index of the split.
        where: Name of the split in messages.

    Raises:
        DataError: The split has no box.
    """
    if index.num_boxes:
        return
    if not index.is_labelled:
        raise DataError(f"{where}: the JSON has no annotations to learn from; give labelled data")
    summary = index.summary
    is_unlabelled = summary.missing_labels == summary.images
    found = _labels_elsewhere(index) if is_unlabelled else None
    elsewhere = f"; {found} contains labels with these names: move them" if found else ""
    raise DataError(
        f"{where}: no usable box to learn from in {summary.images} images ({summary.dropped} dropped): "
        f"{summary.guess()}{elsewhere}"
    )


def warn_without_boxes(index: LabelIndex, *, where: str, then: str) -> None:
    """Warn that mAP cannot be measured on a split without boxes.

    Args:
        index: Label index of the split.
        where: Name of the split in messages.
        then: Consequence for the run, for the message.
    """
    if not index.num_boxes:
        logger.warning("%s has no boxes, so mAP cannot be measured; %s", where, then)


def warn_of_shared_images(train: LabelIndex, val: LabelIndex) -> None:
    """Warn of images that are in both splits: the network is then measured on images that it was trained on."""
    seen = set(train.digests)
    shared = [path for path, digest in zip(val.paths, val.digests, strict=True) if digest in seen]
    if shared:
        logger.warning(
            "%d of %d validation images are also training images, e.g. %s; the measured mAP will be too high",
            len(shared),
            len(val),
            shared[0],
        )


def _labels_elsewhere(index: LabelIndex) -> Path | None:
    """Return a folder near the images that contains label files with their names."""
    for path in map(Path, islice(index.paths, _MOST_TRIED)):
        for above in islice(path.parents, _LEVELS):
            for folder in sorted(above.glob("[Ll]abel*")):
                found = next(folder.rglob(f"{glob.escape(path.stem)}.txt"), None) if folder.is_dir() else None
                if found is not None:
                    return found.parent
    return None
