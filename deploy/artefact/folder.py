"""Folders that are written completely or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import ConfigError
from utils.storage.files import check_writable


def check_replaceable(folder: Path, *, marker: str) -> None:
    """Check that a folder can be created or replaced, before its content is computed.

    Args:
        folder: Folder to write.
        marker: Name of a file that every folder of this kind contains; one without it is not replaced.

    Raises:
        ConfigError: It contains something else, or its parent is not writable.
    """
    if folder.exists() and not (folder / marker).is_file():
        raise ConfigError(f"{folder} exists and contains no {marker}; move it away or choose another name")
    check_writable(folder.parent)


@contextmanager
def replaced_folder(folder: Path, *, marker: str) -> Iterator[Path]:
    """Yield an empty folder beside `folder`, which replaces it on success and is removed on any error.

    Args:
        folder: Folder to write.
        marker: Name of a file that every folder of this kind contains; one without it is not replaced.

    Raises:
        ConfigError: The folder contains something else, or the disk is not writable.
    """
    check_replaceable(folder, marker=marker)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            new, old = Path(scratch, "new"), Path(scratch, "old")
            new.mkdir()
            yield new
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
    except OSError as error:
        shown = error.strerror or error
        raise ConfigError(f"cannot write {folder}: {shown}; free space or choose another folder") from error
