"""The v5.0 data set YAML: locations of the splits, and class names."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import yaml

from utils.config.shipped import find_shipped
from utils.datasets.class_names import class_name, class_order, match_classes
from utils.datasets.reading.coco_json import read_coco_json
from utils.datasets.reading.paths import find_named
from utils.errors import ConfigError, DataError
from utils.storage.files import read_yaml

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_KNOWN_KEYS = ("path", *SPLITS, "nc", "names", "image_root", "download")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set as its YAML describes it, paths resolved.

    Attributes:
        path: YAML file.
        names: Class names; the position is the class id.
        label_names: Class names in the order of the ids in YOLO label files.
        train: Sources of the split: image folders, txt lists of images, COCO JSON files. None if not given.
        val: Sources of the validation split.
        test: Sources of the test split.
        image_root: Folder of the images that a COCO JSON names.
    """

    path: Path
    names: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    train: tuple[Path, ...] | None = None
    val: tuple[Path, ...] | None = None
    test: tuple[Path, ...] | None = None
    image_root: Path | None = None

    def __post_init__(self) -> None:
        if not self.label_names:
            object.__setattr__(self, "label_names", self.names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @property
    def label_classes(self) -> tuple[int, ...]:
        """Class id of each id in YOLO label files."""
        order = class_order(self.names, self.label_names)
        assert order is not None  # both contain the same names
        return order

    def in_order_of(self, names: Sequence[str], *, weights: str) -> DataConfig:
        """Return the data set with its classes in the order of a network's class ids.

        Args:
            names: Class names of the network.
            weights: Name of the network in messages.

        Raises:
            ConfigError: Network and data set have different classes.
        """
        return replace(self, names=match_classes(names, self.names, weights=weights, data=str(self.path)))

    def sources(self, split: str) -> tuple[Path, ...]:
        """Return the sources that list the images of `split` ("train", "val" or "test").

        Raises:
            DataError: The YAML does not name the split, or one of its sources does not exist.
        """
        if split not in SPLITS:
            raise DataError(f"split {split!r} is unknown; known: {', '.join(SPLITS)}")
        sources: tuple[Path, ...] | None = getattr(self, split)
        if sources is None:
            given = [name for name in SPLITS if getattr(self, name) is not None]
            raise DataError(f"{self.path} has no '{split}:' line, only {', '.join(given)}; add one")
        for source in sources:
            if not source.exists():
                raise DataError(f"{self.path}: {split} path {source} does not exist; correct it or fetch the data")
        return sources


def load_data_config(path: str | Path) -> DataConfig:
    """Read a data set YAML with the keys of v5.0 (`download` is never run).

    Relative paths are looked up below the key `path`, then beside the YAML, then in the current folder; a path that
    was written on another machine is found by its end. The name of a shipped YAML is found from any folder.

    Raises:
        ConfigError: The file is missing or not a YAML mapping.
        DataError: The YAML names no split, or `nc`, `names` and the categories of a COCO JSON disagree.
    """
    yaml_path = find_shipped(path, "data")
    _check_is_yaml(yaml_path)
    values = read_yaml(yaml_path, what="data set")
    _check_keys(values, yaml_path)
    roots = _roots(values, yaml_path)
    splits = {split: _split_sources(values[split], split, roots, yaml_path) for split in _given(values)}
    root = values.get("image_root")
    if root is not None and not isinstance(root, str):
        raise DataError(f"{yaml_path}: image_root is {root!r}, expected a folder")
    return DataConfig(
        path=yaml_path,
        names=_class_names(values, splits, yaml_path),
        train=splits.get("train"),
        val=splits.get("val"),
        test=splits.get("test"),
        image_root=_resolve(root, roots, yaml_path) if root else None,
    )


def _check_is_yaml(path: Path) -> None:
    """Refuse data given in place of a YAML; the message shows the YAML to write.

    Raises:
        ConfigError: The path is a folder, a COCO JSON or a list.
    """
    if path.suffix.lower() in (".json", ".txt") or path.is_dir():
        rest = "image_root: <folder of its images>" if path.suffix.lower() == ".json" else "names: [<class>, ...]"
        kind = "a folder" if path.is_dir() else f"a {path.suffix.lower()} file"
        raise ConfigError(
            f"--data {path} is {kind}, expected a YAML that names it; write one with: train: {path.absolute()}; "
            f"val: <the same for validation>; {rest}"
        )


def _given(values: dict[str, Any]) -> list[str]:
    return [split for split in SPLITS if values.get(split)]


def _check_keys(values: dict[str, Any], yaml_path: Path) -> None:
    unknown = ", ".join(str(key) for key in values if key not in _KNOWN_KEYS)
    if not _given(values):
        beside = f", and not {unknown}" if unknown else ""
        raise DataError(
            f"{yaml_path} names no split; give train, val or test (known keys: {', '.join(_KNOWN_KEYS)}{beside})"
        )
    if unknown:
        logger.info("%s: unused keys: %s", yaml_path, unknown)
    if values.get("download"):
        logger.info("%s: 'download' is ignored; fetch the data yourself", yaml_path)


def _roots(values: dict[str, Any], yaml_path: Path) -> list[Path]:
    """Return the folders that relative paths may start from, in the order in which they are tried."""
    beside = [yaml_path.parent, Path()]
    root = values.get("path")
    if not root:
        return beside
    if not isinstance(root, str):
        raise DataError(f"{yaml_path}: path is {root!r}, expected a folder")
    spelled = Path(_spelled(root.replace("\\", "/")))
    places = [folder / spelled for folder in beside]
    places = [place for place in places if place.exists()] or places[:1]
    return [*places, *beside]


def _spelled(text: str) -> str:
    """Return a path with `~` and environment variables expanded."""
    return os.path.expanduser(os.path.expandvars(text.strip()))


def _resolve(text: str, roots: Sequence[Path], yaml_path: Path) -> Path:
    """Return the first existing place, else the first one tried, which a later message then names."""
    # A single folder name, such as `images`, would match too many places.
    found = find_named(_spelled(text), roots, least_parts=2)
    if not found.is_exact:
        logger.info("%s: %s does not exist; using %s", yaml_path, text, found.path)
    return found.path.absolute()


def _split_sources(value: Any, split: str, roots: Sequence[Path], yaml_path: Path) -> tuple[Path, ...]:
    texts = value if isinstance(value, list) else [value]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise DataError(f"{yaml_path}: {split} is {wrong[0]!r}, expected a folder, a .txt list or a COCO .json")
    return tuple(_resolve(text, roots, yaml_path) for text in texts)


def _class_names(values: dict[str, Any], splits: dict[str, tuple[Path, ...]], yaml_path: Path) -> tuple[str, ...]:
    names = _listed_names(_as_written(values.get("names"), yaml_path), yaml_path)
    if names is None:
        names = _json_names(splits)
    if names is None:
        raise DataError(f"{yaml_path} has no 'names'; list the class names (only COCO JSON sets may leave them out)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        logger.warning("%s: class %r is named twice; results per class show only one of them", yaml_path, twice[0])
    count = values.get("nc")
    if count is not None and str(count).strip() not in (str(len(names)), f"{len(names)}.0"):
        raise DataError(f"{yaml_path}: nc is {count} but there are {len(names)} names; make them agree")
    return names


def _as_written(names: Any, yaml_path: Path) -> Any:
    """Return the names as text: YAML would turn a class `no` into a boolean and strip zeros from numbers."""
    parts = names.values() if isinstance(names, dict) else names if isinstance(names, list) else ()
    if all(isinstance(name, str) for name in parts):
        return names
    return read_yaml(yaml_path, what="data set", loader=yaml.BaseLoader).get("names", names)


def _listed_names(value: Any, yaml_path: Path) -> tuple[str, ...] | None:
    """Return the names from a list, or from a mapping of 0, 1, ... to names; the ids may be text."""
    if value is None:
        return None
    if isinstance(value, dict):
        numbered = {int(key) if str(key).strip().isdecimal() else key: name for key, name in value.items()}
        if set(numbered) != set(range(len(value))):
            raise DataError(f"{yaml_path}: names has the ids {list(value)}, expected 0 to {len(value) - 1}")
        value = [numbered[i] for i in range(len(numbered))]
    if not isinstance(value, list) or not value:
        raise DataError(f"{yaml_path}: names is {value!r}, expected a list of class names")
    wrong = [name for name in value if isinstance(name, dict | list) or not class_name(name)]
    if wrong:
        raise DataError(f"{yaml_path}: names contains {wrong[0]!r}, expected the name of a class")
    return tuple(class_name(name) for name in value)


def _json_names(splits: dict[str, tuple[Path, ...]]) -> tuple[str, ...] | None:
    """Return the classes of the first existing COCO JSON: a network learns them in the order of its training data."""
    sources = [source for split in SPLITS for source in splits.get(split, ())]
    files = [source for source in sources if source.suffix.lower() == ".json" and source.exists()]
    if not files:
        return None
    first = read_coco_json(files[0])
    others = map(read_coco_json, files[1:] if any(first.is_root) else ())
    # A category that looks like a root here is a class if another file has boxes of it.
    wanted = reduce(or_, (Counter(coco.class_names()) for coco in others), Counter[str]())
    return first.class_names(wanted.elements())
