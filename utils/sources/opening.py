"""Opening of the source of frames that a user's text names."""

from __future__ import annotations

import glob
import logging
from pathlib import Path

from utils.config.shipped import find_shipped
from utils.datasets.reading.folders import is_image_file, is_in_loop, list_folder
from utils.datasets.reading.paths import find_named
from utils.errors import DataError
from utils.sources.files import FileSource, common_folder
from utils.sources.frame import Source
from utils.sources.live import LiveSource
from utils.sources.video import VIDEO_SUFFIXES
from utils.storage.files import decode_text

logger = logging.getLogger(__name__)

_STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "tcp://", "udp://")


def open_source(text: str) -> Source:
    """Open an image, a video, a folder, a glob, a txt list of files, a camera number or a stream's address.

    Raises:
        DataError: The source does not exist, or contains no image or video.
    """
    text = text.strip()
    if text.isdecimal():
        return LiveSource(int(text))
    if text.lower().startswith(_STREAM_SCHEMES):
        return LiveSource(text)
    path = find_shipped(text, "data")
    if path.is_dir():
        return FileSource(_media_in(path), below=path)
    if path.is_file() and path.suffix.lower() == ".txt":
        files = _listed_in(path)
        return FileSource(files, below=common_folder(files))
    if path.is_file():
        return FileSource([path])
    if glob.has_magic(text):
        folder, pattern = _split_pattern(text)
        return FileSource(_matching(folder, pattern), below=folder)
    raise DataError(
        f"source {text!r} does not exist; give an image, video, folder, glob, txt list, camera number or address"
    )


def _media_in(folder: Path) -> list[Path]:
    listing = list_folder(folder, recursive=False, also=VIDEO_SUFFIXES)
    for note in listing.notes():
        logger.warning("%s: %s", folder, note)
    files = list(listing.images)
    if not files:
        raise DataError(
            f"folder {folder} contains no image or video; subfolders are not searched: give another folder, "
            f"or a glob such as '{folder}/**/*.jpg'"
        )
    return files


def _matching(folder: Path, pattern: str) -> list[Path]:
    found = (folder / name for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True)))
    files = [path for path in found if path.is_file() and _is_media(path) and not is_in_loop(path.parent)]
    if not files:
        raise DataError(
            f"pattern '{folder / pattern}' matches no image or video; check it, and quote it in the shell"
        )
    return files


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES or is_image_file(path)


def _split_pattern(text: str) -> tuple[Path, str]:
    """Split a pattern into the folder that it starts from, and the rest, from the first part with a wildcard on.

    Brackets in the name of an existing folder, such as `cam [1]`, are not a wildcard.
    """
    folder, parts = Path(), Path(text).parts
    for position, part in enumerate(parts):
        if glob.has_magic(part) and ("*" in part or "?" in part or not (folder / part).is_dir()):
            return folder, str(Path(*parts[position:]))
        folder /= part
    raise AssertionError("a pattern without a wildcard")


def _listed_in(list_file: Path) -> list[Path]:
    """Read the files that a text names, one per line, relative to the text's folder or to the current one."""
    try:
        text = decode_text(list_file.read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {list_file} cannot be read ({error}); expected one path per line") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if "\0" in text:
        raise DataError(f"list {list_file} contains null characters; save it as UTF-8 text")
    if not names:
        raise DataError(f"list {list_file} is empty; expected one path per line")
    return [_listed_path(name, folder=list_file.parent) for name in names]


def _listed_path(name: str, *, folder: Path) -> Path:
    found = find_named(name, [folder, Path()])
    return found.path if found.exists else Path(name)
