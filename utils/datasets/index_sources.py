"""Which images and labels a split lists: folders, txt lists and COCO JSON files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.coco_json import CocoSet, read_coco_json
from utils.datasets.config import DataConfig
from utils.datasets.images import IMAGE_SUFFIXES
from utils.datasets.labels import label_path
from utils.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An image that a split lists, not yet looked at.

    Attributes:
        image: The file.
        label_file: Its YOLO txt; None where a COCO JSON gives the labels.
        rows: The labels of a COCO JSON, (n, 5) class, cx, cy, w, h, normalised.
        image_id: The id in the COCO JSON.
        hw: Height and width the COCO JSON states.
        num_crowd: Crowd regions of the COCO JSON.
    """

    image: Path
    label_file: Path | None = None
    rows: np.ndarray[Any, np.dtype[np.float64]] | None = None
    image_id: int | None = None
    hw: tuple[int, int] | None = None
    num_crowd: int = 0


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What the sources of a split list.

    Attributes:
        candidates: Images in a fixed order.
        category_ids: Id of each class.
        coco: The COCO JSON, if it is the only source.
        json_files: Every COCO JSON that was read.
        anchor: The folder or file beside which a cache file belongs.
    """

    candidates: tuple[Candidate, ...]
    category_ids: tuple[int, ...]
    coco: Path | None
    json_files: tuple[Path, ...]
    anchor: Path


def list_candidates(config: DataConfig, split: str) -> Listing:
    """List the images of a split.

    Raises:
        DataError: A source is missing, is neither folder nor txt nor json, lists nothing, or its categories are not
            as many as the class names.
    """
    sources = config.sources(split)
    candidates: list[Candidate] = []
    json_files = tuple(source for source in sources if source.suffix == ".json")
    category_ids = tuple(range(config.num_classes))
    for source in sources:
        if source in json_files:
            coco = read_coco_json(source)
            _check_class_count(coco, config)
            category_ids = coco.category_ids
            candidates += _from_coco(coco, config, split)
        else:
            candidates += [Candidate(image=image, label_file=label_path(image)) for image in _images_of(source)]
    if not candidates:
        raise DataError(f"{config.path}: {split} lists no image in {', '.join(map(str, sources))}; check the paths")
    first = candidates[0].label_file
    is_one_json = len(sources) == 1 and bool(json_files)
    return Listing(
        candidates=tuple(candidates),
        category_ids=category_ids if is_one_json else tuple(range(config.num_classes)),
        coco=sources[0] if is_one_json else None,
        json_files=json_files,
        anchor=first.parent if first is not None else sources[0],
    )


def _check_class_count(coco: CocoSet, config: DataConfig) -> None:
    if len(coco.names) != config.num_classes:
        raise DataError(
            f"{config.path} has {config.num_classes} class names but {coco.path} has {len(coco.names)} categories; "
            f"make them agree or leave 'names' and 'nc' out"
        )


def _images_of(source: Path) -> list[Path]:
    if source.is_dir():
        found = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return sorted(found)
    if source.suffix != ".txt":
        raise DataError(
            f"{source} is neither a folder of images, a .txt list nor a COCO .json; correct the data YAML"
        )
    return _listed_images(source)


def _listed_images(list_file: Path) -> list[Path]:
    """Image paths of a txt list, one per line; relative ones start from the list's folder, or else from here."""
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"image list {list_file} cannot be read as text: {error}; correct the data YAML") from error
    if "\0" in text:
        raise DataError(f"image list {list_file} holds null characters; save it as UTF-8 text")
    images = []
    for line in filter(None, map(str.strip, text.splitlines())):
        beside = list_file.parent / line
        here = Path(line).absolute()
        images.append(here if here.exists() and not beside.exists() else beside)
    return images


def _from_coco(coco: CocoSet, config: DataConfig, split: str) -> list[Candidate]:
    folders = _image_folders(coco.path, config.image_root, split)
    return [
        Candidate(
            image=_locate(image.file_name, folders),
            rows=image.rows,
            image_id=image.image_id if len(config.sources(split)) == 1 else None,
            hw=image.hw,
            num_crowd=image.num_crowd,
        )
        for image in coco.images
    ]


def _image_folders(json_file: Path, image_root: Path | None, split: str) -> list[Path]:
    """Where pictures of a COCO JSON may lie: the root, or its folder of that split ("val", "val2017")."""
    beside = json_file.parent
    roots = [image_root] if image_root else [beside, beside / "images", beside.parent / "images"]
    named = json_file.stem.removeprefix("instances_")
    return [folder for root in roots for folder in (root, root / split, root / named)]


def _locate(file_name: str, folders: list[Path]) -> Path:
    places = [folder / file_name for folder in folders]
    return next((place for place in places if place.exists()), places[0])
