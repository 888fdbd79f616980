"""Indexed splits that detectors are trained and measured on, refused or warned of before it costs hours."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from deploy.artefact.frame import FixedFrame
from deploy.artefact.runtime import DetectorRuntime
from models.weights import read_weights
from tasks.settings import TaskSettings, ValSettings
from utils.datasets.class_names import class_order
from utils.datasets.indexing.config import DataConfig, load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.errors import ConfigError, DataError

LOGGER = logging.getLogger(__name__)

# Folders above an image that are searched for its labels, to report where they are.
_LEVELS = 4
# Images whose labels are searched for.
_MOST_TRIED = 20


def training_splits(settings: TaskSettings, names: Sequence[str] | None) -> tuple[LabelIndex, LabelIndex]:
    """Index the splits `train` and `val`, report their content, and refuse what nothing can be learnt from.

    Args:
        settings: Settings of the run.
        names: Classes of the network, by default of the one it starts from; the same ones in the data get its order.

    Raises:
        DataError: The training split has no box.
    """
    config = load_data_config(settings.data)
    known = _starting_names(settings) if names is None else names
    if not settings.single_cls and class_order(known, config.names) is not None:
        config = config.in_order_of(known, weights=settings.weights or "the network")
    train, val = (index_of(config, split, settings) for split in ("train", "val"))
    check_trainable(train, where=f"{config.path}: train")
    warn_without_boxes(
        val, where=f"{config.path}: val", then="best.pt is the last epoch, and --patience has no effect"
    )
    warn_of_shared_images(train, val)
    return train, val


def index_of(config: DataConfig, split: str, settings: TaskSettings | ValSettings) -> LabelIndex:
    """Index one split of a data set."""
    return build_label_index(
        config,
        split,
        cache_dir=settings.cache_dir or None,
        workers=settings.workers,
        single_cls=settings.single_cls,
    )


def _starting_names(settings: TaskSettings) -> tuple[str, ...]:
    """Return the classes of the network that a run starts from; none where it starts from scratch."""
    weights = settings.weights
    return read_weights(weights).names if weights and Path(weights).is_file() else ()


def in_common_order(data: DataConfig, runtimes: Sequence[DetectorRuntime], settings: ValSettings) -> DataConfig:
    """Return the data set with its classes in the order that all the networks have.

    Raises:
        ConfigError: A network knows other classes, or two list them in different orders.
    """
    orders = {
        data.in_order_of(runtime.names, weights=path)
        for path, runtime in zip(settings.weights, runtimes, strict=True)
    }
    if len(orders) > 1:
        raise ConfigError("--weights: the networks list their classes in different orders; measure them one by one")
    return orders.pop()


def frame_of(runtimes: Sequence[DetectorRuntime], settings: ValSettings) -> tuple[int, int] | None:
    """Return the one height and width of images that fixed artefacts take.

    Raises:
        ConfigError: They take different ones, or not the size that was asked for.
    """
    frame = FixedFrame.of(runtimes, settings.weights)
    if frame is None:
        return None
    if settings.task == "study":
        for size in settings.study_sizes:
            frame.check(size, setting="--study-sizes")
    elif settings.img_size is not None:
        frame.check(settings.img_size)
    if settings.rect:
        LOGGER.info("%s takes images of height and width %s only: measured at that size", frame.name, frame.hw)
    return frame.hw


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
        LOGGER.warning("%s has no boxes, so mAP cannot be measured; %s", where, then)


def warn_of_shared_images(train: LabelIndex, val: LabelIndex) -> None:
    """Warn of images that are in both splits: the network is then measured on images that it was trained on."""
    seen = set(train.digests)
    shared = [path for path, digest in zip(val.paths, val.digests, strict=True) if digest in seen]
    if shared:
        LOGGER.warning(
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
