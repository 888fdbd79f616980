"""From what the user wrote to a source of frames."""

from __future__ import annotations

import glob
from itertools import takewhile
from pathlib import Path

from utils.datasets.images import IMAGE_SUFFIXES
from utils.errors import DataError
from utils.sources.files import FileSource, common_folder
from utils.sources.frame import Source
from utils.sources.live import LiveSource
from utils.sources.video import VIDEO_SUFFIXES

_STREAM_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "tcp://", "udp://")
_MEDIA_SUFFIXES = IMAGE_SUFFIXES | VIDEO_SUFFIXES


def open_source(text: str) -> Source:
    """Open an image, a video, a folder, a glob, a txt list of files, a camera number or a stream's address.

    Raises:
        DataError: Nothing is there, or nothing there is an image or a video.
    """
    text = text.strip()
    if text.isdecimal():
        return LiveSource(int(text))
    if text.lower().startswith(_STREAM_SCHEMES):
        return LiveSource(text)
    path = Path(text)
    if path.is_dir():
        return FileSource(_media_in(path), below=path)
    if path.is_file() and path.suffix.lower() == ".txt":
        files = _listed_in(path)
        return FileSource(files, below=common_folder(files))
    if path.is_file():
        return FileSource([path])
    if glob.has_magic(text):
        return FileSource(_matching(text), below=_fixed_prefix(text))
    raise DataError(
        f"source {text!r} does not exist; give an image, video, folder, glob, txt list, camera number or address"
    )


def _media_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _MEDIA_SUFFIXES]
    if not files:
        raise DataError(
            f"folder {folder} holds no image or video; images lie directly in it, "
            f"or are found by a glob such as '{folder}/**/*.jpg'"
        )
    return files


def _matching(pattern: str) -> list[Path]:
    found = (Path(name) for name in sorted(glob.glob(pattern, recursive=True)))
    files = [path for path in found if path.suffix.lower() in _MEDIA_SUFFIXES and path.is_file()]
    if not files:
        raise DataError(f"pattern {pattern!r} matches no image or video; check it, and quote it in the shell")
    return files


def _fixed_prefix(pattern: str) -> Path:
    """The folder that a pattern starts from: its parts before the first one with a wildcard."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parts))


def _listed_in(list_file: Path) -> list[Path]:
    """The files that a text names, one per line, relative to the text's folder or to the current one."""
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"list {list_file} cannot be read ({error}); expected one path per line") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if "\0" in text:
        raise DataError(f"list {list_file} holds null characters; save it as UTF-8 text")
    if not names:
        raise DataError(f"list {list_file} is empty; expected one path per line")
    return [_listed_path(name, folder=list_file.parent) for name in names]


def _listed_path(name: str, *, folder: Path) -> Path:
    beside = folder / name
    return beside if beside.exists() else Path(name)
