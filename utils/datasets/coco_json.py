"""COCO JSON annotations, checked once where they enter."""

from __future__ import annotations

import json
import reprlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import DataError

_LARGEST = 2**63 - 1
_KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("image_id", "category_id", "bbox"),
}


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One picture of a COCO JSON.

    Attributes:
        image_id: Its id in the file.
        file_name: Relative to the image folder.
        hw: Height and width as the file states them; boxes are in these pixels.
        rows: (n, 5) float64: class, cx, cy, w, h, normalised. Crowds are left out.
        num_crowd: How many crowd regions it has.
    """

    image_id: int
    file_name: str
    hw: tuple[int, int]
    rows: np.ndarray[Any, np.dtype[np.float64]]
    num_crowd: int


@dataclass(frozen=True, kw_only=True)
class CocoSet:
    """A COCO JSON. Class k is the category with the k-th smallest id.

    Attributes:
        path: The file.
        category_ids: Id of each class in the file.
        names: Name of each class.
        images: In the order of the file.
    """

    path: Path
    category_ids: tuple[int, ...]
    names: tuple[str, ...]
    images: tuple[CocoImage, ...]


def read_categories(path: str | Path) -> tuple[tuple[int, str], ...]:
    """Ids and names of the categories of a COCO JSON, by ascending id.

    Raises:
        DataError: The file is no JSON or its categories are missing or incomplete.
    """
    return _categories(_read_json(Path(path)), Path(path))


def read_coco_json(path: str | Path) -> CocoSet:
    """Read and check a COCO JSON.

    Raises:
        DataError: The file is missing, truncated or no JSON, keys are missing, ids are unknown or given twice, or a
            box is not four finite numbers.
    """
    path = Path(path)
    content = _read_json(path)
    categories = _categories(content, path)
    images = _section(content, "images", path)
    annotations = _section(content, "annotations", path)
    sizes = {_integer(image, "id", path): _size(image, path) for image in images}
    if len(sizes) != len(images):
        raise DataError(f"{path}: two images have the same id; give each its own")
    class_of = {category_id: position for position, (category_id, _) in enumerate(categories)}
    rows: dict[int, list[list[float]]] = defaultdict(list)
    crowds: dict[int, int] = defaultdict(int)
    for annotation in annotations:
        image_id, row = _row(annotation, sizes=sizes, class_of=class_of, path=path)
        if annotation.get("iscrowd"):
            crowds[image_id] += 1
        else:
            rows[image_id].append(row)
    return CocoSet(
        path=path,
        category_ids=tuple(category_id for category_id, _ in categories),
        names=tuple(name for _, name in categories),
        images=tuple(
            CocoImage(
                image_id=image["id"],
                file_name=str(image["file_name"]),
                hw=sizes[image["id"]],
                rows=np.array(rows[image["id"]], np.float64).reshape(-1, 5),
                num_crowd=crowds[image["id"]],
            )
            for image in images
        ),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"COCO JSON {path} does not exist; check the path") from None
    except OSError as error:
        raise DataError(f"COCO JSON {path} cannot be read: {error.strerror}; check its rights") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"COCO JSON {path} is truncated or no JSON: {error}; fetch it again") from error
    if not isinstance(content, dict):
        raise DataError(
            f"COCO JSON {path} holds a {type(content).__name__}, expected an object with {', '.join(_KEYS)}"
        )
    return content


def _section(content: dict[str, Any], name: str, path: Path) -> list[dict[str, Any]]:
    """A list of the file, each of its objects having the keys that are used."""
    section = content.get(name)
    if not isinstance(section, list):
        raise DataError(f"COCO JSON {path} has no list '{name}'; expected {', '.join(_KEYS)}")
    for position, item in enumerate(section):
        missing = [key for key in _KEYS[name] if not isinstance(item, dict) or key not in item]
        if missing:
            raise DataError(f"COCO JSON {path}: {name}[{position}] has no key '{missing[0]}'; add it")
    return section


def _integer(item: dict[str, Any], key: str, path: Path) -> int:
    value = item[key]
    if not isinstance(value, int) or abs(value) > _LARGEST:
        raise DataError(f"COCO JSON {path}: {key} is {value!r}, expected an integer of at most 63 bits")
    return value


def _size(image: dict[str, Any], path: Path) -> tuple[int, int]:
    height, width = _integer(image, "height", path), _integer(image, "width", path)
    if height < 1 or width < 1:
        raise DataError(f"COCO JSON {path}: image {image['id']} is {width} x {height} pixels; correct its size")
    return height, width


def _categories(content: dict[str, Any], path: Path) -> tuple[tuple[int, str], ...]:
    categories = _section(content, "categories", path)
    named = {_integer(category, "id", path): str(category["name"]) for category in categories}
    if len(named) != len(categories):
        raise DataError(f"COCO JSON {path}: two categories have the same id; give each its own")
    if not named:
        raise DataError(f"COCO JSON {path} has no categories; add them")
    return tuple(sorted(named.items()))


def _row(
    annotation: dict[str, Any], *, sizes: dict[int, tuple[int, int]], class_of: dict[int, int], path: Path
) -> tuple[int, list[float]]:
    """The image id and (class, cx, cy, w, h) of an annotation."""
    which = f"COCO JSON {path}: annotation {annotation.get('id', '')}".rstrip()
    image_id, category_id, box = (annotation[key] for key in _KEYS["annotations"])
    if not isinstance(image_id, int) or image_id not in sizes:
        raise DataError(f"{which} has the unknown image_id {image_id!r}; remove it or add the image")
    if not isinstance(category_id, int) or category_id not in class_of:
        raise DataError(f"{which} has the unknown category_id {category_id!r}; remove it or add the category")
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not is_box or not all(abs(v) <= _LARGEST for v in box):  # false for NaN, too
        raise DataError(
            f"{which} has the bbox {reprlib.repr(box)}, expected four finite numbers (left, top, width, height)"
        )
    height, width = sizes[image_id]
    left, top, w, h = box
    row = [class_of[category_id], (left + w / 2) / width, (top + h / 2) / height, w / width, h / height]
    return image_id, row
