"""A folder of files that is either whole or absent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import ConfigError
from utils.files import check_writable


def check_replaceable(folder: Path, *, marker: str) -> None:
    """Check that a folder can be made or replaced, before what goes into it is computed.

    Args:
        folder: Where the files will be.
        marker: As of `replaced_folder`.

    Raises:
        ConfigError: It holds something else, or lies where no folder can be made.
    """
    if folder.exists() and not (folder / marker).is_file():
        raise ConfigError(f"{folder} exists and holds no {marker}; move it away or choose another name")
    check_writable(folder.parent)


@contextmanager
def replaced_folder(folder: Path, *, marker: str) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes its place, on any error it is removed.

    Args:
        folder: Where the files will be.
        marker: A file that an earlier folder of this kind holds; a folder without it is not ours to replace.

    Raises:
        ConfigError: The folder holds something else, or the disk cannot be written to.
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
