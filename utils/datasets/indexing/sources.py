"""The images and labels that a split lists in folders, txt lists and COCO JSON files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from utils.datasets.class_names import class_order, different_names
from utils.datasets.coco_names import COCO_IDS, COCO_NAMES
from utils.datasets.indexing.config import DataConfig
from utils.datasets.reading.annotations import Annotations
from utils.datasets.reading.coco_json import CocoSet, read_coco_json
from utils.datasets.reading.folders import list_folder
from utils.datasets.reading.labels import label_path
from utils.datasets.reading.paths import find_named
from utils.errors import DataError
from utils.storage.files import decode_text

# Prefixes of COCO's file names: `instances_val2017.json` lists the images of `val2017`.
_TASKS = re.compile(r"(instances|person_keypoints|image_info)_")
# Text files in label folders that are not labels.
_NO_LABELS = ("classes.txt", "labels.txt", "names.txt", "notes.txt", "readme.txt", "train.txt", "val.txt", "test.txt")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image that a split lists, before it is scanned.

    Attributes:
        image: Image file.
        file_name: Name in the COCO JSON, or path below the folder or list that names it, with slashes.
        label_file: YOLO txt; None if a COCO JSON gives the labels.
        annotations: Boxes of a COCO JSON in the pixels of `hw`.
        image_id: Id in the COCO JSON.
        hw: Height and width that the COCO JSON states.
        json_file: COCO JSON that lists the image.
        is_stored: True if its boxes are known to refer to the pixels as stored, before an EXIF rotation.
    """

    image: Path
    file_name: str
    label_file: Path | None = None
    annotations: Annotations | None = None
    image_id: int | None = None
    hw: tuple[int, int] | None = None
    json_file: Path | None = None
    is_stored: bool = False


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The content of the sources of a split.

    Attributes:
        candidates: Images in a fixed order.
        category_ids: Id of each class in the COCO JSON, or COCO's own for its 80 classes; else 0, 1, ...
        json_files: COCO JSON files that were read.
        anchor: Folder or file beside which the cache file is written.
        is_labelled: True if any source has labels; an `image_info` file has none.
        notes: Lines that report what was skipped or read differently from how it is written.
    """

    candidates: tuple[Candidate, ...]
    category_ids: tuple[int, ...]
    json_files: tuple[Path, ...]
    anchor: Path
    is_labelled: bool
    notes: tuple[str, ...]


def list_candidates(config: DataConfig, split: str) -> Listing:
    """List the images of a split.

    Raises:
        DataError: A source is missing or neither folder nor txt nor json, the split lists nothing, or categories
            differ from the classes of the data set.
    """
    sources = config.sources(split)
    candidates: list[Candidate] = []
    coco_sets: list[CocoSet] = []
    notes: list[str] = []
    for source in sources:
        if source.suffix.lower() == ".json":
            coco = read_coco_json(source)
            coco_sets.append(coco)
            found = _from_coco(coco, config, split, notes=notes)
        elif source.is_dir():
            found = _from_folder(source, notes=notes)
        else:
            found = _from_list(source, notes=notes)
        candidates += found
    if not candidates:
        places = ", ".join(map(str, sources))
        raise DataError(f"{config.path}: {split} lists no image in {places}; check the paths{_only(notes)}")
    first = candidates[0].label_file
    return Listing(
        candidates=_with_distinct_names(candidates),
        category_ids=_category_ids(config, coco_sets),
        json_files=tuple(coco.path for coco in coco_sets),
        anchor=first.parent if first is not None else sources[0],
        is_labelled=len(coco_sets) < len(sources) or any(coco.is_labelled for coco in coco_sets),
        notes=(*notes, *_shared_labels(candidates)),
    )


def _with_distinct_names(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Name images relative to the common folder of all sources, if names relative to each source are not unique."""
    if len({candidate.file_name for candidate in candidates}) == len(candidates):
        return tuple(candidates)
    names = _names_below_common_folder([candidate.image for candidate in candidates])
    return tuple(
        candidate if candidate.annotations is not None else replace(candidate, file_name=name)
        for candidate, name in zip(candidates, names, strict=True)
    )


def _only(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes)})" if notes else ""


def _from_folder(source: Path, *, notes: list[str]) -> list[Candidate]:
    listing = list_folder(source)
    notes += listing.notes()
    found = [
        Candidate(image=image, file_name=image.relative_to(source).as_posix(), label_file=label_path(image))
        for image in listing.images
    ]
    notes += _unused_labels(found)
    return found


def _unused_labels(candidates: Sequence[Candidate]) -> list[str]:
    """Report how many label files in the label folders of a folder's images belong to no image."""
    used = {candidate.label_file for candidate in candidates}
    unused: list[Path] = []
    for folder in sorted({file.parent for file in used if file is not None}):
        if folder.is_dir():
            texts = (Path(entry.path) for entry in os.scandir(folder) if entry.name.lower().endswith(".txt"))
            unused += sorted(file for file in texts if file not in used and file.name.lower() not in _NO_LABELS)
    return [f"{len(unused)} label files without an image, e.g. {unused[0]}"] if unused else []


def _shared_labels(candidates: Sequence[Candidate]) -> list[str]:
    """Report how many images share their label file with another, as a.jpg and a.png do."""
    images: dict[Path, set[Path]] = {}
    for candidate in candidates:
        if candidate.label_file is not None:
            images.setdefault(candidate.label_file, set()).add(candidate.image)
    shared = [names for names in images.values() if len(names) > 1]
    if not shared:
        return []
    example = " and ".join(str(path) for path in sorted(shared[0])[:2])
    return [f"{sum(map(len, shared))} images share their label file with another, e.g. {example}"]


def _from_list(source: Path, *, notes: list[str]) -> list[Candidate]:
    """Read the images of a txt list, one path per line, relative to the list's folder or to the current one."""
    if source.suffix.lower() != ".txt":
        raise DataError(
            f"{source} is neither a folder of images, a .txt list nor a COCO .json; correct the data YAML"
        )
    try:
        text = decode_text(source.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"image list {source} cannot be read as text: {error}; correct the data YAML") from error
    if "\0" in text:
        raise DataError(f"image list {source} contains null characters; save it as UTF-8 text")
    lines = [line.strip().strip("\"'").strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    # Paths in a list with its own folder may start from the folder above.
    folders = [source.parent, Path().absolute(), source.parent.parent]
    images = _located(names, folders, where=str(source), notes=notes)
    return [
        Candidate(image=image, file_name=name, label_file=label_path(image))
        for image, name in zip(images, _names_below_common_folder(images), strict=True)
    ]


def _names_below_common_folder(images: Sequence[Path]) -> list[str]:
    """Name images relative to the deepest folder that contains all of them, however their paths are written."""
    places = [Path(os.path.abspath(image)) for image in images]
    common = os.path.commonpath([place.parent for place in places]) if places else ""
    return [place.relative_to(common).as_posix() for place in places]


def _located(names: Sequence[str], folders: Sequence[Path], *, where: str, notes: list[str]) -> list[Path]:
    """Find the named files; return the first place tried for those that do not exist.

    Raises:
        DataError: Two different names lead to one file that was found only by the end of its path.
    """
    found = [find_named(name, folders) for name in names]
    inexact: dict[Path, str] = {}
    for name, place in zip(names, found, strict=True):
        if place.exists and not place.is_exact and inexact.setdefault(place.path, name) != name:
            raise DataError(
                f"{where}: {inexact[place.path]} and {name} do not exist, and both would be {place.path}; "
                "correct the paths, or image_root in the data YAML"
            )
    if inexact:
        path, name = next(iter(inexact.items()))
        notes.append(f"{len(inexact)} images found by the end of their paths, e.g. {name} as {path}")
    return [place.path for place in found]


def _from_coco(coco: CocoSet, config: DataConfig, split: str, *, notes: list[str]) -> list[Candidate]:
    class_of = _class_of_category(coco, config)
    folders = _image_folders(coco.path, config.image_root, split)
    paths = _located([image.file_name for image in coco.images], folders, where=str(coco.path), notes=notes)
    notes += coco.notes
    return [
        Candidate(
            image=path,
            file_name=image.file_name,
            annotations=image.annotations.of_class(class_of[image.annotations.classes]),
            image_id=image.image_id,
            hw=image.hw,
            json_file=coco.path,
        )
        for path, image in zip(paths, coco.images, strict=True)
    ]


def _class_of_category(coco: CocoSet, config: DataConfig) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the class id of each category of a JSON, matched by name.

    Raises:
        DataError: The JSON and the data set have different classes.
    """
    names = coco.class_names(config.names)
    order = class_order(config.names, names)
    if order is None:
        differ = different_names(config.names, names, what=("the YAML", "the JSON"))
        raise DataError(
            f"{config.path} has {config.num_classes} class names but {coco.path} has {len(names)} categories: "
            f"{differ}; make them agree (a category needs no boxes), or leave 'names' and 'nc' out"
        )
    ids = iter(order)
    return np.array([next(ids) if is_class else -1 for is_class in coco.is_class(config.names)], np.int64)


def _category_ids(config: DataConfig, coco_sets: Sequence[CocoSet]) -> tuple[int, ...]:
    """Return the id of each class for use in predictions."""
    by_file = {tuple(sorted(_ids_by_class(coco, config).items())) for coco in coco_sets}
    if len(by_file) == 1:
        ids: Mapping[int, int] = dict(next(iter(by_file)))
        return tuple(ids[class_id] for class_id in range(config.num_classes))
    if not coco_sets and set(config.names) == set(COCO_NAMES) and config.num_classes == len(COCO_NAMES):
        official = dict(zip(COCO_NAMES, COCO_IDS, strict=True))
        return tuple(official[name] for name in config.names)
    return tuple(range(config.num_classes))


def _ids_by_class(coco: CocoSet, config: DataConfig) -> dict[int, int]:
    classes: Iterable[int] = _class_of_category(coco, config).tolist()
    return {class_id: number for class_id, number in zip(classes, coco.category_ids, strict=True) if class_id >= 0}


def image_ids(candidates: Sequence[Candidate]) -> tuple[int, ...]:
    """Return the image ids for use in predictions: ids of the COCO JSON, or numbers that files are named by.

    If these are missing or not unique, positions take their place.
    """
    given = [candidate.image_id for candidate in candidates]
    ids = [value for value in given if value is not None]
    if ids and len(set(ids)) == len(given):
        return tuple(ids)
    stems = [candidate.image.stem for candidate in candidates]
    if all(stem.isascii() and stem.isdigit() and len(stem) < 19 for stem in stems):
        numbers = tuple(int(stem) for stem in stems)
        if len(set(numbers)) == len(numbers):
            return numbers
    return tuple(range(len(candidates)))


def _image_folders(json_file: Path, image_root: Path | None, split: str) -> list[Path]:
    """Return folders that may contain the images of a COCO JSON: a root, or a split's folder ("val", "val2017")."""
    beside = json_file.parent
    places = [above / name for name in ("", "images", "data") for above in (beside, beside.parent)]
    roots = [image_root] if image_root else places
    named = _TASKS.sub("", json_file.stem)
    return [folder for root in roots for folder in (root, root / split, root / named)]
