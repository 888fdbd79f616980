"""Reader of COCO JSON annotations, the only one in the project."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.class_names import class_name
from utils.datasets.reading.annotations import Annotations, Array
from utils.datasets.reading.coco_values import CocoValues, Item
from utils.errors import DataError

_KEYS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id"),
}
# No data set has only boxes whose values are all at most one pixel.
_SHARE = 1.0


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One image of a COCO JSON.

    Attributes:
        image_id: Id in the file; None if it is a name.
        file_name: Path relative to some image folder, as written in the file.
        hw: Height and width that the boxes refer to; None if the file does not state them.
        annotations: Boxes in the pixels of `hw`; a class is a position in the categories of the file.
    """

    image_id: int | None
    file_name: str
    hw: tuple[int, int] | None
    annotations: Annotations


@dataclass(frozen=True, kw_only=True)
class CocoSet:
    """The content of a COCO JSON.

    Attributes:
        path: COCO JSON file.
        category_ids: Id of each category, ascending.
        names: Name of each category.
        is_root: True for a category without boxes that others name as their supercategory, as Roboflow writes.
        images: Images in the order of the file.
        is_labelled: True if the file has a list of annotations, even an empty one; an `image_info` file has none.
        notes: Lines that report deviations from the COCO format and how they were read.
    """

    path: Path
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    is_root: tuple[bool, ...]
    images: tuple[CocoImage, ...]
    is_labelled: bool
    notes: tuple[str, ...]

    def is_class(self, wanted: Iterable[str] = ()) -> tuple[bool, ...]:
        """Return whether each category is a class: all except roots, unless their names are wanted."""
        plain = Counter(name for name, is_root in zip(self.names, self.is_root, strict=True) if not is_root)
        lacking = Counter(map(class_name, wanted)) - plain
        return tuple(not is_root or lacking[name] > 0 for name, is_root in zip(self.names, self.is_root, strict=True))

    def class_names(self, wanted: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the names of the categories that are classes."""
        return tuple(name for name, is_class in zip(self.names, self.is_class(wanted), strict=True) if is_class)


def read_coco_json(path: str | Path) -> CocoSet:
    """Read and check a COCO JSON; cache the result while the file does not change.

    Raises:
        DataError: The file is missing, truncated or not JSON, keys are missing, ids are unknown or repeated, a box
            is not four finite numbers, or all boxes are normalised.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError:
        return _read(path)  # raises the error with its reason
    return _read_once(path.absolute(), (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size))


@lru_cache(maxsize=8)
def _read_once(path: Path, stamp: tuple[int, ...]) -> CocoSet:
    return _read(path)


def _read(path: Path) -> CocoSet:
    content = _content(path)
    values = CocoValues(path)
    categories = _categories(content, values)
    images = _images(content, values)
    is_labelled = "annotations" in content
    items = _section(content, "annotations", path) if is_labelled else []
    rows, places = _rows(items, images=images, categories=categories, values=values)
    _refuse_normalised(rows, path)
    order = np.argsort(places, kind="stable")
    ends = np.searchsorted(places[order], np.arange(len(images)), side="right")
    parts = np.split(rows[order], ends[:-1]) if images else []
    return CocoSet(
        path=path,
        category_ids=tuple(categories),
        names=tuple(name for name, _ in categories.values()),
        is_root=_are_roots(categories, used=set(rows[:, 0].tolist())),
        images=tuple(
            CocoImage(
                image_id=image_id if isinstance(image_id, int) else None,
                file_name=name,
                hw=hw,
                annotations=Annotations.from_rows(part),
            )
            for (image_id, (name, hw)), part in zip(images.items(), parts, strict=True)
        ),
        is_labelled=is_labelled,
        notes=values.notes(),
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())  # UTF-8 or UTF-16, with or without byte-order mark
    except FileNotFoundError:
        raise DataError(f"COCO JSON {path} does not exist; check the path") from None
    except OSError as error:
        raise DataError(f"COCO JSON {path} cannot be read: {error.strerror}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"COCO JSON {path} is truncated or not JSON: {error}; download it again") from error
    if not isinstance(content, dict):
        raise DataError(
            f"COCO JSON {path} contains a {type(content).__name__}, expected an object with {', '.join(_KEYS)}"
        )
    return content


def _section(content: dict[str, Any], name: str, path: Path) -> list[Item]:
    """Return one list of the file after checking that each of its objects has the required keys."""
    section = content.get(name)
    if not isinstance(section, list):
        raise DataError(f"COCO JSON {path} has no list '{name}'; expected {', '.join(_KEYS)}")
    for position, item in enumerate(section):
        missing = [key for key in _KEYS[name] if not isinstance(item, dict) or key not in item]
        if missing == ["file_name"] and "coco_url" in item:  # LVIS, which has addresses in place of names
            continue
        if missing:
            raise DataError(f"COCO JSON {path}: {name}[{position}] has no key '{missing[0]}'; add it")
    return section


def _categories(content: dict[str, Any], values: CocoValues) -> dict[int, tuple[str, str]]:
    """Return the names of each category and its supercategory, by id in ascending order."""
    section = _section(content, "categories", values.path)
    named = {
        values.integer(item, "id"): (class_name(item["name"]), class_name(item.get("supercategory")))
        for item in section
    }
    if len(named) != len(section):
        raise DataError(f"COCO JSON {values.path}: two categories have the same id; give each its own")
    if not named:
        raise DataError(f"COCO JSON {values.path} has no categories; add them")
    return dict(sorted(named.items()))


def _are_roots(categories: dict[int, tuple[str, str]], *, used: set[float]) -> tuple[bool, ...]:
    """Return whether each category only groups others; one that is its own supercategory does not."""
    groups = {above for _, above in categories.values() if above.lower() not in ("", "none", "null")}
    return tuple(
        position not in used and name in groups and above != name
        for position, (name, above) in enumerate(categories.values())
    )


def _images(content: dict[str, Any], values: CocoValues) -> dict[int | str, tuple[str, tuple[int, int] | None]]:
    """Return file name and size of each image by id; an image listed twice with the same name counts once."""
    images: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
    for item in _section(content, "images", values.path):
        image_id, entry = values.image_id(item, "id"), (values.file_name(item), values.size(item))
        if isinstance(image_id, str):
            values.note("image ids are names; predictions use image positions instead")
        if image_id not in images:
            images[image_id] = entry
        elif images[image_id][0] == entry[0]:
            values.note("images are listed twice")
        else:
            raise DataError(f"COCO JSON {values.path}: two images have the same id; give each its own")
    return images


def _rows(
    items: Sequence[Item], *, images: dict[int | str, Any], categories: dict[int, Any], values: CocoValues
) -> tuple[Array, Array]:
    """Return rows (M, 7) of category position, box, area, crowd, and the position (M,) of each box's image."""
    place_of = {image_id: place for place, image_id in enumerate(images)}
    class_of = {category_id: position for position, category_id in enumerate(categories)}
    rows, places = [], []
    for item in items:
        image_id, category_id = values.image_id(item, "image_id"), values.integer(item, "category_id")
        if image_id not in place_of:
            raise DataError(
                f"{values.where(item)} has the unknown image_id {item['image_id']!r}; remove it or add the image"
            )
        if category_id not in class_of:
            raise DataError(
                f"{values.where(item)} has the unknown category_id {item['category_id']!r}; remove it or add the "
                "category"
            )
        rows.append([class_of[category_id], *values.box(item), values.area(item), values.is_crowd(item)])
        places.append(place_of[image_id])
    return np.array(rows, np.float64).reshape(-1, 7), np.array(places, np.int64)


def _refuse_normalised(rows: Array, path: Path) -> None:
    """Refuse boxes that are fractions of the image, which show as values of at most one pixel in all boxes."""
    boxes = rows[:, 1:5]
    if len(boxes) and boxes.max() <= _SHARE and boxes[:, 2:].max() > 0:
        raise DataError(
            f"COCO JSON {path}: no bbox is larger than {boxes.max():.3g} pixels; they look normalised: multiply "
            "them by the width and height of their image"
        )
