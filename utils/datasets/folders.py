"""Image files of a folder: what is an image, what is passed over, and what was not read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
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
    """

    images: tuple[Path, ...]
    unread: Mapping[str, int]
    loops: tuple[Path, ...]

    def notes(self) -> list[str]:
        """Return lines that say what was passed over."""
        lines = []
        if self.unread:
            most = sorted(self.unread.items(), key=lambda item: -item[1])[:_MOST_SUFFIXES]
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in most)
            lines.append(f"{sum(self.unread.values())} files that are no images, not read: {kinds}")
        if self.loops:
            lines.append(f"{len(self.loops)} links to a folder that they lie in, not followed, e.g. {self.loops[0]}")
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
    for path in _files_below(folder, recursive=recursive, loops=loops):
        if path.suffix.lower() in also or is_image_file(path):
            images.append(path)
        elif path.suffix.lower() not in _DATA_SUFFIXES:
            unread[path.suffix.lower() or "no suffix"] += 1
    return FolderListing(images=tuple(sorted(images)), unread=dict(sorted(unread.items())), loops=tuple(loops))


def is_image_file(path: Path) -> bool:
    """Return whether a file is to be read as an image: by its suffix, or else by how it begins."""
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or (suffix not in _DATA_SUFFIXES and _begins_like_image(path))


def _files_below(folder: Path, *, recursive: bool, loops: list[Path]) -> Iterator[Path]:
    """Yield the visible files of a folder; links that lead back to a folder above are added to `loops`."""
    open_folders: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, (_identity(folder),))]
    while open_folders:
        current, above = open_folders.pop()
        for entry in sorted(os.scandir(current), key=lambda item: item.name):
            path = Path(entry.path)
            if entry.name.startswith(".") or entry.name.lower() in _LITTER:
                continue
            if not entry.is_dir():
                yield path
            elif recursive:
                identity = _identity(path)
                if identity in above:
                    loops.append(path)
                else:
                    open_folders.append((path, (*above, identity)))


def _identity(folder: Path) -> tuple[int, int]:
    """Return what two paths to one folder share."""
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _begins_like_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_LONGEST_SIGNATURE)
    except OSError:
        return False
    is_webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _FTYP_IMAGES
    return start.startswith(_SIGNATURES) or is_webp or is_heif
