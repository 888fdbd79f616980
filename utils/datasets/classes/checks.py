"""Checks that image files can be read, remembered from run to run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.datasets.classes.decoding import num_cores
from utils.datasets.reading.images import ImageFacts, check_image
from utils.errors import ConfigError, DataError
from utils.progress import progress
from utils.storage.files import NPZ_ERRORS, atomic_write

LOGGER = logging.getLogger(__name__)

# Increase when `check_image` accepts other files.
_VERSION = 1
_STAMP_BYTES = 16
# Files whose results are awaited before more are handed to the threads.
_CHUNK = 512

Finding = ImageFacts | DataError


def check_files(paths: Sequence[Path], *, memory: Path) -> list[Finding]:
    """Check that images can be read, unless an earlier run did so and path, size and time of the file are the same.

    Args:
        paths: Image files.
        memory: File of facts from earlier runs; it is read, and written if there is more to remember.

    Returns:
        For each file its facts, or the reason why it cannot be read.
    """
    stamps = [_stamp(path) for path in paths]
    known = _recalled(memory)
    unknown = [number for number, stamp in enumerate(stamps) if stamp not in known]
    found: list[Finding | None] = [known.get(stamp) for stamp in stamps]
    batches = _Checked([paths[number] for number in unknown])
    for number, finding in zip(unknown, progress(batches, description="checking images"), strict=True):
        found[number] = finding
    good = {stamp: item for stamp, item in zip(stamps, found, strict=True) if isinstance(item, ImageFacts)}
    if good.keys() != known.keys():
        _remember(memory, good)
    return [item for item in found if item is not None]


@dataclass(frozen=True)
class _Checked:
    """The findings of files, in their order, made by as many threads as there are cores."""

    paths: Sequence[Path]

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Finding]:
        with ThreadPoolExecutor(num_cores(), thread_name_prefix="check") as pool:
            for start in range(0, len(self.paths), _CHUNK):
                yield from pool.map(_checked, self.paths[start : start + _CHUNK])


def _checked(path: Path) -> Finding:
    try:
        return check_image(path)
    except DataError as error:
        return error


def _stamp(path: Path) -> bytes:
    """Return a digest of the version of the checks, and path, size and modification time of a file."""
    try:
        facts = path.stat()
        text = f"{_VERSION} {path.absolute()} {facts.st_size} {facts.st_mtime_ns}"
    except OSError:
        text = f"{path} absent"
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=_STAMP_BYTES).digest()


def _remember(memory: Path, facts: dict[bytes, ImageFacts]) -> None:
    """Write facts by stamp; only warn if the file cannot be written."""
    try:
        with atomic_write(memory) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                stamps=_rows(list(facts)),
                digests=_rows([item.digest for item in facts.values()]),
                sizes=np.array([(*item.hw, item.orientation) for item in facts.values()], np.int64).reshape(-1, 3),
            )
    except ConfigError as error:
        LOGGER.warning("the images will be checked again in the next run: %s", error)


def _rows(values: list[bytes]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, _STAMP_BYTES)


def _recalled(memory: Path) -> dict[bytes, ImageFacts]:
    """Read the facts that `_remember` wrote; none if the file is missing or damaged."""
    try:
        with np.load(memory, allow_pickle=False) as file:
            stamps, digests, sizes = file["stamps"], file["digests"], file["sizes"]
        facts = {}
        for stamp, digest, (height, width, orientation) in zip(stamps, digests, sizes.tolist(), strict=True):
            facts[stamp.tobytes()] = ImageFacts(
                hw=(int(height), int(width)), orientation=int(orientation), digest=digest.tobytes()
            )
    except (KeyError, *NPZ_ERRORS):
        return {}
    return facts
