"""Search for files that a YAML, a list or a COCO JSON names, even if it was written on another machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote


@dataclass(frozen=True, kw_only=True)
class Found:
    """The location of a named file or folder.

    Attributes:
        path: Location; the first one tried if nothing exists.
        exists: True if a file or folder exists there.
        is_exact: True if the whole text led there, False if only its end did.
    """

    path: Path
    exists: bool
    is_exact: bool


def find_named(text: str, folders: Sequence[Path], *, least_parts: int = 1) -> Found:
    """Look for a file or folder below some folders.

    The text is tried as written, then with slashes for backslashes and with `%20` and the like decoded. Then ever
    shorter ends of it are tried, because the beginning of a path may belong to another machine.

    Args:
        text: Relative or absolute path, or address.
        folders: Folders that a relative path may start from, in the order in which they are tried.
        least_parts: Fewest parts of an end that is tried.
    """
    spellings = tuple(_spellings(text))
    for spelling in spellings:
        for folder in folders:
            if _exists(folder / spelling):
                return Found(path=folder / spelling, exists=True, is_exact=True)
    for spelling in spellings:
        for tail in _tails(spelling, least_parts=least_parts):
            for folder in folders:
                if _exists(folder / tail):
                    return Found(path=folder / tail, exists=True, is_exact=False)
    return Found(path=folders[0] / spellings[0], exists=False, is_exact=True)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a null character
        return False


def _spellings(text: str) -> Iterator[str]:
    """Yield the text, and its meaning on systems and in tools that write paths differently."""
    known = dict.fromkeys([text, text.replace("\\", "/"), text.removeprefix("file://")])
    known |= dict.fromkeys(unquote(spelling) for spelling in tuple(known))
    yield from known


def _tails(text: str, *, least_parts: int) -> Iterator[Path]:
    """Yield the ends of a path, longest first, without parts that lead upwards."""
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "..", "~")]
    for start in range(len(parts)):
        if len(parts) - start >= min(least_parts, len(parts)):
            yield Path(*parts[start:])
