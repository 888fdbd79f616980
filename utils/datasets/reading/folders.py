"""Listing of a folder's image files, with a report of the files that were skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Suffixes that identify a file as an image without reading it.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".webp"}
    | {".avif", ".heic", ".heif", ".dng"}
)
# Suffixes of other files that data sets keep beside their images.
_DATA_SUFFIXES = frozenset(
    {".txt", ".json", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".cache", ".npy", ".npz", ".html", ".py"}
)
# Most kinds of unread files that a line names.
_MOST_SUFFIXES = 8
# Files that desktops leave behind, in addition to hidden ones.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_LONGEST_SIGNATURE = 12
_FTYP_IMAGES = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1")
_SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP",
)


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """The contents of a folder and of all folders below it.

    Attributes:
        images: Files to read as images, sorted.
        unread: Number of files that are not images, by suffix, without label files and other data.
        loops: Links to a folder above them, which were not followed.
        closed: Folders that this user may not open.
    """

    images: tuple[Path, ...]
    unread: Mapping[str, int]
    loops: tuple[Path, ...]
    closed: tuple[Path, ...]

    def notes(self) -> list[str]:
        """Return lines that report what was skipped."""
        lines = []
        if self.unread:
            most = sorted(self.unread.items(), key=lambda item: -item[1])[:_MOST_SUFFIXES]
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in most)
            lines.append(f"{sum(self.unread.values())} files that are not images, not read: {kinds}")
        if self.loops:
            lines.append(f"{len(self.loops)} links to a folder above them, not followed, e.g. {self.loops[0]}")
        if self.closed:
            lines.append(f"{len(self.closed)} folders that may not be opened, not read, e.g. {self.closed[0]}")
        return lines


def list_folder(folder: Path, *, recursive: bool = True, also: Container[str] = ()) -> FolderListing:
    """List the images of a folder.

    Links to folders are followed. Hidden files and folders are skipped. A file with an unknown suffix is an image if
    it starts with the signature of one.

    Args:
        folder: Folder to list.
        recursive: Whether to list the folders below it as well.
        also: Suffixes of further files to list, such as those of videos.
    """
    images: list[Path] = []
    unread: Counter[str] = Counter()
    loops: list[Path] = []
    closed: list[Path] = []
    for path in _files_below(folder, recursive=recursive, loops=loops, closed=closed):
        if is_special_file(path):
            unread["pipe, socket or device"] += 1
        elif path.suffix.lower() in also or is_image_file(path):
            images.append(path)
        elif path.suffix.lower() not in _DATA_SUFFIXES:
            unread[path.suffix.lower() or "no suffix"] += 1
    return FolderListing(
        images=tuple(sorted(images)),
        unread=dict(sorted(unread.items())),
        loops=tuple(loops),
        closed=tuple(closed),
    )


def is_special_file(path: Path) -> bool:
    """Return whether a path is neither a file nor a folder; reading it may block or never end."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a broken link
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden by its name, or one that desktops leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def is_image_file(path: Path) -> bool:
    """Return whether a file is an image, by its suffix, or else by its signature."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix not in _DATA_SUFFIXES and _begins_like_image(path))


def _files_below(folder: Path, *, recursive: bool, loops: list[Path], closed: list[Path]) -> Iterator[Path]:
    """Yield the visible files of a folder; add circular links to `loops` and unreadable folders to `closed`."""
    open_folders: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, (_identity(folder),))]
    while open_folders:
        current, above = open_folders.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda item: item.name)
        except OSError:
            closed.append(current)
            continue
        for entry in entries:
            path = Path(entry.path)
            if is_hidden(entry.name):
                continue
            if not os.path.isdir(entry):
                yield path
            elif recursive:
                identity = _identity(path)
                if identity in above:
                    loops.append(path)
                else:
                    open_folders.append((path, (*above, identity)))


@lru_cache(maxsize=4096)
def is_in_loop(folder: Path) -> bool:
    """Return whether a folder's path, as written, passes through the same folder twice because of a link."""
    folder = Path(os.path.abspath(folder))
    above = [_identity(path) for path in (folder, *folder.parents)]
    return len(set(above)) < len(above)


def _identity(folder: Path) -> tuple[int, int]:
    """Return device and inode, which are equal for all paths to one folder."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def _begins_like_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_SIGNATURE)
    except OSError:
        return False
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _FTYP_IMAGES
    return start.startswith(_SIGNATURES) or is_webp or is_heif
