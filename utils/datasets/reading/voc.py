"""Converter from Pascal VOC XML to YOLO txt.

Run it with `python -m utils.datasets.reading.voc --source VOCdevkit/VOC2007 --target voc07`.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from utils.config.cli import run_script
from utils.errors import DataError
from utils.storage.files import write_text, write_yaml

logger = logging.getLogger(__name__)

_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


@dataclass(frozen=True, kw_only=True)
class VocConfig:
    """Convert a Pascal VOC data set to YOLO txt labels and a data YAML."""

    source: Path
    """Folder with JPEGImages, Annotations and ImageSets/Main."""
    target: Path
    """New folder for images, labels and data.yaml."""
    train_set: str = "trainval"
    """List in ImageSets/Main that becomes train."""
    val_set: str = "test"
    """List in ImageSets/Main that becomes val."""
    keep_difficult: bool = False
    """Keep objects marked as difficult."""


@dataclass(frozen=True, kw_only=True)
class VocObject:
    """One object of a VOC XML, in pixels.

    Attributes:
        name: Class name.
        xyxy: Edges counted from 0; VOC counts pixels from 1, so its box 1..w covers the whole width.
        is_difficult: True if marked as hard to recognise; VOC leaves such objects out of its evaluation.
    """

    name: str
    xyxy: tuple[float, float, float, float]
    is_difficult: bool


class _NoDoctype(ElementTree.TreeBuilder):
    """An XML builder that refuses document types, the only place where expanding entities can be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ElementTree.ParseError(f"it declares the document type {name!r}, which annotations never need")


def convert_voc(config: VocConfig) -> Path:
    """Write labels, copies of the images, and a data YAML with the class names in alphabetical order.

    Returns:
        The data YAML.

    Raises:
        DataError: The source is not a VOC folder, a file is missing or malformed, or the target already exists.
    """
    if config.target.exists():
        raise DataError(f"target {config.target} already exists; choose a new folder")
    sets = {"train": config.train_set, "val": config.val_set}
    stems = {split: _read_set(config.source, name) for split, name in sets.items()}
    known = {
        stem: read_voc_xml(config.source / "Annotations" / f"{stem}.xml")
        for stem in {stem for names in stems.values() for stem in names}
    }
    names = sorted({item.name for _, objects in known.values() for item in objects})
    class_ids = {name: position for position, name in enumerate(names)}
    for split, members in stems.items():
        for stem in members:
            hw, objects = known[stem]
            kept = [item for item in objects if config.keep_difficult or not item.is_difficult]
            _copy_image(config, split, stem)
            write_text(config.target / "labels" / split / f"{stem}.txt", _label_lines(kept, hw, class_ids))
        logger.info("%s: %d images", split, len(members))
    data_yaml = config.target / "data.yaml"
    write_yaml(data_yaml, {"train": "images/train", "val": "images/val", "nc": len(names), "names": names})
    logger.info("wrote %s with %d classes", data_yaml, len(names))
    return data_yaml


def read_voc_xml(path: Path) -> tuple[tuple[int, int], list[VocObject]]:
    """Read one annotation file.

    Returns:
        Height and width of the image, and its objects.

    Raises:
        DataError: The file is missing or not XML, declares a document type, or lacks an element.
    """
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_NoDoctype())).getroot()
    except OSError as error:
        raise DataError(f"annotation {path} cannot be read: {error.strerror}; check the path") from error
    except ElementTree.ParseError as error:
        raise DataError(f"annotation {path} is not VOC XML: {error}; correct or remove it") from error
    hw = (int(_number(root, "size/height", path)), int(_number(root, "size/width", path)))
    if min(hw) < 1:
        raise DataError(f"annotation {path} states the size {hw[1]} x {hw[0]}; correct it")
    return hw, [_object(element, path) for element in root.iter("object")]


def _object(element: ElementTree.Element, path: Path) -> VocObject:
    x1, y1, x2, y2 = (_number(element, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax"))
    return VocObject(
        name=_text(element, "name", path),
        xyxy=(x1 - 1, y1 - 1, x2, y2),
        is_difficult=element.findtext("difficult", "0").strip() == "1",
    )


def _text(element: ElementTree.Element, tag: str, path: Path) -> str:
    text = element.findtext(tag)
    if text is None or not text.strip():
        raise DataError(f"annotation {path} has a <{element.tag}> without <{tag}>; add it")
    return text.strip()


def _number(element: ElementTree.Element, tag: str, path: Path) -> float:
    text = _text(element, tag, path)
    try:
        return float(text)
    except ValueError:
        raise DataError(f"annotation {path}: <{tag}> is {text!r}, expected a number") from None


def _read_set(source: Path, name: str) -> list[str]:
    path = source / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.txt"))) or "none"
        raise DataError(f"image set {path} does not exist; give --train-set and --val-set one of: {known}")
    return [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _copy_image(config: VocConfig, split: str, stem: str) -> None:
    folder = config.source / "JPEGImages"
    image = next((folder / f"{stem}{suffix}" for suffix in _SUFFIXES if (folder / f"{stem}{suffix}").is_file()), None)
    if image is None:
        raise DataError(f"image {folder / stem}.jpg does not exist; add it or remove {stem} from the image set")
    target = config.target / "images" / split
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy2(image, target / image.name)


def _label_lines(objects: list[VocObject], hw: tuple[int, int], class_ids: dict[str, int]) -> str:
    height, width = hw
    lines = []
    for item in objects:
        x1, y1, x2, y2 = item.xyxy
        box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{class_ids[item.name]} " + " ".join(f"{value:.6f}" for value in box))
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    run_script(convert_voc, VocConfig)
