"""Files that a YAML, a list or a COCO JSON names, found even where they were written on another machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where a named file or folder lies.

    Attributes:
        path: The place; the first one that was tried where nothing is there.
        exists: Whether something is there.
        is_exact: Whether the text itself led there, and not only the end of it.
    """

    path: Path
    exists: bool
    is_exact: bool


def find_named(text: str, folders: Sequence[Path], *, least_parts: int = 1) -> Found:
    """Look for a file or folder below some folders.

    The text is tried as it stands, then with slashes for backslashes and with `%20` and the like decoded. Then its
    end is tried, ever shorter, as the beginning of a path says where it lay on another machine.

    Args:
        text: A path, relative or absolute, or an address.
        folders: Where a relative path may start, in the order they are tried.
        least_parts: Parts that the end of a path has at least.
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
    """Yield the text, and what it means on the systems and in the tools that write paths differently."""
    known = dict.fromkeys([text, text.replace("\\", "/"), text.removeprefix("file://")])
    known |= dict.fromkeys(unquote(spelling) for spelling in tuple(known))
    yield from known


def _tails(text: str, *, least_parts: int) -> Iterator[Path]:
    """Yield the ends of a path, longest first, without what leads upwards."""
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", "..", "~")]
    for start in range(len(parts)):
        if len(parts) - start >= min(least_parts, len(parts)):
            yield Path(*parts[start:])
