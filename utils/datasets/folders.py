"""Image files of a folder: what is an image, what is passed over, and what was not read."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

# Suffixes whose files are taken for images without a look inside.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".jpe", ".jfif", ".mpo", ".png", ".tif", ".tiff", ".webp"}
    | {".avif", ".heic", ".heif", ".dng"}
)
# Suffixes that data sets keep beside their images and that are none.
_DATA_SUFFIXES = frozenset(
    {".txt", ".json", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".md", ".cache", ".npy", ".npz", ".html", ".py"}
)
# Kinds of unread files that a line names.
_MOST_SUFFIXES = 8
# Files that desktops leave behind, beside the hidden ones.
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
    """Contents of a folder and of all folders below it.

    Attributes:
        images: Files to read as images, sorted.
        unread: Number of files that are no images, by suffix; files of labels and other data are left out.
        loops: Links to a folder that they lie in, which were not followed.
        closed: Folders that this user may not open.
    """

    images: tuple[Path, ...]
    unread: Mapping[str, int]
    loops: tuple[Path, ...]
    closed: tuple[Path, ...]

    def notes(self) -> list[str]:
        """Return lines that say what was passed over."""
        lines = []
        if self.unread:
            most = sorted(self.unread.items(), key=lambda item: -item[1])[:_MOST_SUFFIXES]
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in most)
            lines.append(f"{sum(self.unread.values())} files that are no images, not read: {kinds}")
        if self.loops:
            lines.append(f"{len(self.loops)} links to a folder that they lie in, not followed, e.g. {self.loops[0]}")
        if self.closed:
            lines.append(f"{len(self.closed)} folders that may not be opened, not read, e.g. {self.closed[0]}")
        return lines


def list_folder(folder: Path, *, recursive: bool = True, also: Container[str] = ()) -> FolderListing:
    """List the images of a folder.

    Links to folders are followed. Hidden files and folders are passed over. A file whose suffix says nothing is an
    image if it begins like one.

    Args:
        folder: Where to look.
        recursive: Whether to look in the folders below it too.
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
    """Return whether something is neither a file nor a folder: reading it may wait for ever, or never end."""
    try:
        mode = path.stat().st_mode
    except OSError:  # a link that leads nowhere
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_image_file(path: Path) -> bool:
    """Return whether a file is to be read as an image: by its suffix, or else by how it begins."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix not in _DATA_SUFFIXES and _begins_like_image(path))


def _files_below(folder: Path, *, recursive: bool, loops: list[Path], closed: list[Path]) -> Iterator[Path]:
    """Yield the visible files of a folder; `loops` gets links that lead back, `closed` what cannot be opened."""
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
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
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
    """Return whether a folder, as its path is written, lies in itself: a link led back."""
    folder = Path(os.path.abspath(folder))
    above = [_identity(path) for path in (folder, *folder.parents)]
    return len(set(above)) < len(above)


def _identity(folder: Path) -> tuple[int, int]:
    """Return what two paths to one folder share."""
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
