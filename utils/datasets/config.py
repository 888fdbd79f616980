"""The v5.0 data set YAML: where the splits lie and what the classes are called."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.datasets.class_names import compare_class_names
from utils.datasets.coco_json import read_categories
from utils.errors import ConfigError, DataError
from utils.files import read_yaml

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_KNOWN_KEYS = ("path", *SPLITS, "nc", "names", "image_root", "download")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set as its YAML describes it, paths resolved.

    Attributes:
        path: The YAML file.
        names: Class names; the position is the class id.
        train: Sources of the split: image folders, txt lists of images, COCO JSON files. None if not given.
        val: The same for validation.
        test: The same for the final test.
        image_root: Where the pictures named by a COCO JSON lie.
    """

    path: Path
    names: tuple[str, ...]
    train: tuple[Path, ...] | None = None
    val: tuple[Path, ...] | None = None
    test: tuple[Path, ...] | None = None
    image_root: Path | None = None

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def check_classes(self, names: Sequence[str], *, weights: str) -> None:
        """Refuse a network of another number of classes; other words for them are told of.

        Args:
            names: Of the network's classes.
            weights: What the user calls the network.

        Raises:
            ConfigError: The numbers differ.
        """
        if len(names) != self.num_classes:
            raise ConfigError(
                f"{weights} knows {len(names)} classes but {self.path} has {self.num_classes}; "
                "use the data the model was trained on, or --single-cls of val.py"
            )
        compare_class_names(names, self.names, weights=weights, data=str(self.path))

    def sources(self, split: str) -> tuple[Path, ...]:
        """Where the images of `split` ("train", "val" or "test") are listed.

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

    Relative paths are looked for below the key `path`, then beside the YAML, then in the current folder.

    Raises:
        ConfigError: The file is missing or no YAML mapping.
        DataError: Unknown keys, no split at all, or `nc`, `names` and the categories of a COCO JSON disagree.
    """
    yaml_path = Path(path)
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
        image_root=_resolve(root, roots) if root else None,
        **splits,
    )


def _given(values: dict[str, Any]) -> list[str]:
    return [split for split in SPLITS if values.get(split)]


def _check_keys(values: dict[str, Any], yaml_path: Path) -> None:
    known = ", ".join(_KNOWN_KEYS)
    unknown = [str(key) for key in values if key not in _KNOWN_KEYS]
    if unknown:
        raise DataError(f"{yaml_path}: unknown key {unknown[0]!r}; known: {known}")
    if not _given(values):
        raise DataError(f"{yaml_path} names no split; give train, val or test (known keys: {known})")
    if values.get("download"):
        logger.info("%s: 'download' is ignored; fetch the data yourself", yaml_path)


def _roots(values: dict[str, Any], yaml_path: Path) -> list[Path]:
    """Folders that relative paths may start from, in the order they are tried."""
    beside = yaml_path.parent
    root = values.get("path")
    if not root:
        return [beside, Path()]
    if not isinstance(root, str):
        raise DataError(f"{yaml_path}: path is {root!r}, expected a folder")
    return [_resolve(root, [beside, Path()]), beside, Path()]


def _resolve(text: str, roots: Sequence[Path]) -> Path:
    """The first existing place, else the first place, so that a later message names it."""
    places = [root / Path(text).expanduser() for root in roots]
    return next((place for place in places if place.exists()), places[0]).absolute()


def _split_sources(value: Any, split: str, roots: Sequence[Path], yaml_path: Path) -> tuple[Path, ...]:
    texts = value if isinstance(value, list) else [value]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise DataError(f"{yaml_path}: {split} is {wrong[0]!r}, expected a folder, a .txt list or a COCO .json")
    return tuple(_resolve(text, roots) for text in texts)


def _class_names(values: dict[str, Any], splits: dict[str, tuple[Path, ...]], yaml_path: Path) -> tuple[str, ...]:
    names = _listed_names(values.get("names"), yaml_path)
    if names is None:
        names = _json_names(splits)
    if names is None:
        raise DataError(f"{yaml_path} has no 'names'; list the class names (only COCO JSON sets may leave them out)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        logger.warning("%s: class %r is named twice; numbers per class show one of them", yaml_path, twice[0])
    count = values.get("nc")
    if count is not None and count != len(names):
        raise DataError(f"{yaml_path}: nc is {count} but there are {len(names)} names; make them agree")
    return names


def _listed_names(value: Any, yaml_path: Path) -> tuple[str, ...] | None:
    """Names given as a list, or as a mapping from 0, 1, ... to names."""
    if value is None:
        return None
    if isinstance(value, dict):
        if sorted(value, key=str) != sorted(range(len(value)), key=str):
            raise DataError(f"{yaml_path}: names has the ids {list(value)}, expected 0 to {len(value) - 1}")
        value = [value[i] for i in range(len(value))]
    if not isinstance(value, list) or not value:
        raise DataError(f"{yaml_path}: names is {value!r}, expected a list of class names")
    return tuple(str(name) for name in value)


def _json_names(splits: dict[str, tuple[Path, ...]]) -> tuple[str, ...] | None:
    """Names of the first COCO JSON there is; validation files are the smaller ones."""
    for split in ("val", "test", "train"):
        for source in splits.get(split, ()):
            if source.suffix == ".json" and source.exists():
                return tuple(name for _, name in read_categories(source))
    return None
