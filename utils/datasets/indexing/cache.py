"""The cache file of a label index: an .npz of numbers and text, no pickle, keyed by the content of label files."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.datasets.indexing.sources import Candidate
from utils.errors import ConfigError
from utils.storage.files import atomic_write, sha256_of

logger = logging.getLogger(__name__)

# Increase when the content of the file or the cleaning of labels changes.
_VERSION = 4


def cache_file(anchor: Path, cache_dir: str | Path | None) -> Path:
    """Return `<anchor>.index.cache` beside the labels; in `cache_dir` a digest of the path makes the name unique.

    The double suffix avoids overwriting the `.cache` files that other YOLO trainers leave in the same place.
    """
    if cache_dir is None:
        return anchor.with_name(f"{anchor.name}.index.cache")
    digest = hashlib.sha256(_bytes(str(anchor.absolute()))).hexdigest()[:12]
    return Path(cache_dir) / f"{anchor.name}-{digest}.index.cache"


def content_key(candidates: Iterable[Candidate], *, extra_files: Iterable[Path], settings: str) -> str:
    """Return a digest of all label files' content, all images' paths, sizes and modification times, and `settings`.

    Size and time stand for an image's pixels, because reading all pixels would cost as much as indexing again.
    """
    digest = hashlib.sha256(_bytes(f"{_VERSION} {settings}"))
    for candidate in candidates:
        digest.update(f"{candidate.file_name!r} ".encode() + _image_stamp(candidate.image))
        if candidate.label_file is not None:
            digest.update(_content(candidate.label_file))
    for path in extra_files:
        digest.update(_content(path))
    return digest.hexdigest()


def _image_stamp(path: Path) -> bytes:
    try:
        stat = path.stat()
    except OSError:
        return _bytes(f"{path} absent\n")
    return _bytes(f"{path} {stat.st_size} {stat.st_mtime_ns}\n")


def _content(path: Path) -> bytes:
    try:
        return _bytes(f"{path} {sha256_of(path)}\n")
    except OSError:
        return _bytes(f"{path} absent\n")


def _bytes(text: str) -> bytes:
    """Encode text that contains paths, which need not be UTF-8."""
    return text.encode(errors="surrogateescape")


def save_index_parts(file: Path, key: str, parts: Mapping[str, Any]) -> None:
    """Write arrays unchanged and other parts as JSON; only warn if the file cannot be written."""
    arrays: dict[str, Any] = {name: value for name, value in parts.items() if isinstance(value, np.ndarray)}
    text = {name: value for name, value in parts.items() if name not in arrays}
    try:
        with atomic_write(file) as temporary, temporary.open("wb") as stream:
            np.savez(stream, key=np.array(key), text=np.array(json.dumps(text)), **arrays)
    except ConfigError as error:
        logger.warning("the label index is not cached: %s", error)


def load_index_parts(file: Path, key: str) -> dict[str, Any] | None:
    """Read the parts that `save_index_parts` wrote; None if the file is missing, damaged or has another key."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            parts: dict[str, Any] = json.loads(str(stored["text"]))
            parts.update({name: stored[name] for name in stored.files if name not in ("key", "text")})
            return parts
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
