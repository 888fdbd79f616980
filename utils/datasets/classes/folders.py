"""Reader of images that are sorted into folders by split and class: train/cat/1.jpg, val/cat/2.jpg."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from utils.datasets.classes.checks import Finding, check_files
from utils.datasets.classes.decoding import FileImages
from utils.datasets.classes.pictures import PictureData, PictureSet
from utils.datasets.reading.folders import FolderListing, is_hidden, is_in_loop, list_folder
from utils.datasets.reading.images import ImageFacts
from utils.errors import DataError

LOGGER = logging.getLogger(__name__)

# Names of the folder to measure on, the first that exists unless another one is asked for.
_TEST_SPLITS = ("val", "valid", "validation", "test")
_EXPECTED = "expected train/CLASS/ and val/CLASS/ with images"
# Most names that a message lists.
_MOST_NAMED = 5
_DIGEST_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The image files of a split.

    Attributes:
        folder: Folder of the split.
        paths: Image files, in order of their classes.
        labels: Class id of each file.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]


def read_class_folders(root: str | Path, *, img_size: int, cache: Path, measured: str = "val") -> PictureData:
    """Read the splits of a folder; images are decoded only when they are used.

    Classes are the folders in train, sorted by name; those of the other split are matched by name. Images may lie in
    folders below their class. Files that cannot be read are skipped with a warning.

    Args:
        root: Folder with `train` and one of `val`, `valid`, `validation` and `test`.
        img_size: Height and width of the images of the data set, in pixels.
        cache: Folder in which is remembered which files can be read.
        measured: Name of the folder to measure on; where it is missing, the first of the others.

    Raises:
        DataError: The folder has another layout, a class has no training image, or one is only in the other split.
    """
    root = Path(root)
    if img_size < 1:
        raise DataError(f"--img-size {img_size}: expected at least 1 pixel")
    train_folder, test_folder = _split_folders(root, measured)
    classes, test_classes = _class_folders(train_folder), _class_folders(test_folder)
    if len(classes) < 2:
        raise DataError(f"--data {root}: train has {len(classes)} class folders, expected at least 2; {_EXPECTED}")
    if unknown := [name for name in test_classes if name not in classes]:
        raise DataError(
            f"--data {root}: {_named(unknown)} in {test_folder.name} is no class in train, which has "
            f"{_named(list(classes))}; rename or remove the folder"
        )
    names = tuple(classes)
    splits = [_listed(train_folder, classes, names), _listed(test_folder, test_classes, names)]
    digest = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:_DIGEST_LENGTH]
    paths = [path for split in splits for path in split.paths]
    findings = check_files(paths, memory=cache / "folders" / f"{digest}.npz")
    middle = len(splits[0].paths)
    _check_classes(splits[0], findings[:middle], names=names)
    train, test = (
        _picture_set(split, found, names=names, img_size=img_size)
        for split, found in zip(splits, (findings[:middle], findings[middle:]), strict=True)
    )
    _warn_of_missing(test, train, where=str(test_folder))
    return PictureData(train=train, test=test)


def _split_folders(root: Path, measured: str) -> tuple[Path, Path]:
    """Return the folders of both splits; warn if the one to measure on is not the one that was asked for."""
    train = root / "train"
    names = (measured, *_TEST_SPLITS)
    test = next((root / name for name in names if (root / name).is_dir()), None)
    if measured == "test" and test is not None and test.name != measured:
        LOGGER.warning("%s has no folder test; measured on %s", root, test.name)
    if not train.is_dir() or test is None:
        raise DataError(f"--data {root}: {_EXPECTED}, found {_contents(root)}; a detector's data is a YAML file")
    return train, test


def _contents(folder: Path) -> str:
    """Return a short list of what a folder contains."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder) if not is_hidden(entry.name))
    except OSError as error:
        return f"a folder that cannot be read ({error.strerror})"
    return _named(names) if names else "an empty folder"


def _class_folders(split: Path) -> dict[str, Path]:
    """Return the folders of a split by class name, sorted; warn of other files and of links back to the split."""
    classes, others = {}, []
    try:
        entries = sorted(os.scandir(split), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"--data {split} cannot be read: {error.strerror}; check its permissions") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if os.path.isdir(entry) and not is_in_loop(Path(entry.path)):
            classes[_printable(entry.name)] = Path(entry.path)
        else:
            others.append(entry.name)
    if not classes:
        raise DataError(f"--data {split.parent}: {_EXPECTED}, found {_contents(split)} in {split.name}")
    if others:
        LOGGER.warning("%s: %d files outside the class folders, not read: %s", split, len(others), _named(others))
    return classes


def _printable(name: str) -> str:
    """Return a folder's name as text; bytes that are no UTF-8, as of old archives, become such as \\xe9."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _listed(split: Path, classes: Mapping[str, Path], names: Sequence[str]) -> _Split:
    """List the images of a split; warn of the files that are none."""
    paths: list[Path] = []
    labels: list[int] = []
    listings: list[FolderListing] = []
    for name, folder in classes.items():
        listing = list_folder(folder)
        listings.append(listing)
        paths += listing.images
        labels += [names.index(name)] * len(listing.images)
    unread: Counter[str] = Counter()
    for listing in listings:
        unread.update(listing.unread)
    whole = FolderListing(
        images=tuple(paths),
        unread=unread,
        loops=tuple(path for listing in listings for path in listing.loops),
        closed=tuple(path for listing in listings for path in listing.closed),
    )
    for note in whole.notes():
        LOGGER.warning("%s: %s", split, note)
    return _Split(folder=split, paths=whole.images, labels=tuple(labels))


def _check_classes(train: _Split, findings: Sequence[Finding], *, names: Sequence[str]) -> None:
    """Refuse classes without a training image, which no network could learn."""
    usable = {label for label, found in zip(train.labels, findings, strict=True) if isinstance(found, ImageFacts)}
    if empty := [name for label, name in enumerate(names) if label not in usable]:
        damaged = sum(names[label] in empty for label in train.labels)
        reason = f" ({damaged} files there cannot be read)" if damaged else ""
        raise DataError(
            f"--data {train.folder} has no usable image in {_named(empty)}{reason}; add images or remove the folder"
        )


def _picture_set(split: _Split, findings: Sequence[Finding], *, names: tuple[str, ...], img_size: int) -> PictureSet:
    """Build the set of a split's readable images; warn of the others."""
    usable, damaged = [], []
    for path, label, found in zip(split.paths, split.labels, findings, strict=True):
        if isinstance(found, ImageFacts):
            usable.append((str(path), label, found))
        else:
            damaged.append(f"{path.parent.name}/{path.name}")
    if damaged:
        LOGGER.warning("%s: %d images cannot be read, skipped: %s", split.folder, len(damaged), _named(damaged))
    if not usable:
        raise DataError(f"--data {split.folder} has no usable image; add some to its class folders")
    paths, labels, facts = zip(*usable, strict=True)
    images = FileImages(
        paths=paths,
        sizes_hw=np.array([item.hw for item in facts], dtype=np.int64),
        digests=tuple(item.digest for item in facts),
        side=img_size,
    )
    return PictureSet(images=images, labels=torch.tensor(labels, dtype=torch.int64), names=names)


def _warn_of_missing(test: PictureSet, train: PictureSet, *, where: str) -> None:
    """Warn of classes that cannot be measured, and of images that the network is measured and trained on."""
    counts = torch.bincount(test.labels, minlength=len(test.names)).tolist()
    if missing := [name for name, count in zip(test.names, counts, strict=True) if not count]:
        LOGGER.warning("%s has no images of %d classes: %s", where, len(missing), _named(missing))
    assert isinstance(test.images, FileImages)
    assert isinstance(train.images, FileImages)
    seen = set(train.images.digests)
    shared = [path for path, digest in zip(test.images.paths, test.images.digests, strict=True) if digest in seen]
    if shared:
        LOGGER.warning(
            "%s: %d of %d images are also training images, e.g. %s; the measured accuracy will be too high",
            where,
            len(shared),
            len(test),
            shared[0],
        )


def _named(names: Sequence[str]) -> str:
    """Return the first few names in one line."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(repr(name)[1:-1] for name in names[:_MOST_NAMED]) + more
