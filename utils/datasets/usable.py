"""Checks of a data set before it costs hours: is there anything to learn from, and anything to measure on."""

from __future__ import annotations

import glob
import logging
from itertools import islice
from pathlib import Path

from utils.datasets.index import LabelIndex
from utils.errors import DataError

logger = logging.getLogger(__name__)

# Folders above an image in which its labels are looked for, to say where they are.
_LEVELS = 4
# Images whose labels are looked for.
_MOST_TRIED = 20


def check_trainable(index: LabelIndex, *, where: str) -> None:
    """Refuse a training split without a box, and say what it looks like.

    Args:
        index: The split.
        where: What the user calls it.

    Raises:
        DataError: There is no box.
    """
    if index.num_boxes:
        return
    if not index.is_labelled:
        raise DataError(
            f"{where}: the JSON has no annotations, so there is nothing to learn from; give labelled data"
        )
    summary = index.summary
    is_unlabelled = summary.missing_labels == summary.images
    found = _labels_elsewhere(index) if is_unlabelled else None
    elsewhere = f"; there are labels of these names in {found}: move them" if found else ""
    raise DataError(
        f"{where}: no usable box in {summary.images} images ({summary.dropped} dropped), so there is nothing to "
        f"learn from: {summary.guess()}{elsewhere}"
    )


def warn_without_boxes(index: LabelIndex, *, where: str, then: str) -> None:
    """Warn that nothing can be measured on a split without boxes.

    Args:
        index: The split.
        where: What the user calls it.
        then: What happens instead.
    """
    if not index.num_boxes:
        logger.warning("%s has no boxes, so no mAP can be measured; %s", where, then)


def warn_of_shared_images(train: LabelIndex, val: LabelIndex) -> None:
    """Warn of images that are in both splits: the network has seen what it is measured on."""
    seen = set(train.digests)
    shared = [path for path, digest in zip(val.paths, val.digests, strict=True) if digest in seen]
    if shared:
        logger.warning(
            "%d of %d validation images are training images too, e.g. %s; the measured mAP is too high",
            len(shared),
            len(val),
            shared[0],
        )


def _labels_elsewhere(index: LabelIndex) -> Path | None:
    """Return a folder near the images that has label files of their names."""
    for path in map(Path, islice(index.paths, _MOST_TRIED)):
        for above in islice(path.parents, _LEVELS):
            for folder in sorted(above.glob("[Ll]abel*")):
                found = next(folder.rglob(f"{glob.escape(path.stem)}.txt"), None) if folder.is_dir() else None
                if found is not None:
                    return found.parent
    return None
