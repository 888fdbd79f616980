"""Names of outputs after their inputs, so that a name leads back to the input; no other module makes them.

An output keeps the stem of its input exactly, and its subfolder below the folder that the input was listed below:

    labels/<subfolder>/<stem>.txt    <subfolder>/<stem>.jpg or .mp4    crops/<class>/<subfolder>/<stem>_<number>.jpg

Names of frames of a video or stream end with their position. If inputs would share an output, the names also contain
their suffixes (a.jpg beside a.png: a.jpg.txt and a.png.txt), and a number if another input already has that name. If
a stem is too long for what has to follow it, a digest replaces its end.
Names that differ only in case or in Unicode composition count as one, because some file systems treat them so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import TypeAlias

from utils.sources.files import common_folder
from utils.sources.video import VIDEO_SUFFIXES
from utils.storage.files import LONGEST_NAME

logger = logging.getLogger(__name__)

# File, and the folder that it was listed below.
Input: TypeAlias = tuple[Path, Path]

# Entries of a run folder besides drawn images and videos.
_RUN_ENTRIES = frozenset(("labels", "crops", "opt.yaml", "result.json", "detections.json"))
_ENDINGS = (".jpg", ".mp4", ".txt")
_POSITION = re.compile(r"(?s)(.*)_\d{6,}")
_NUMBER = re.compile(r"(?s)(.*)_\d+")
# Characters that some file systems refuse or read as a folder separator.
_UNSAFE = re.compile(r'[\x00-\x1f/\\<>:"|?*]')


class OutputNames:
    """The output names of a run; every path is relative to the run folder, with forward slashes.

    names = OutputNames(below_common_folder(paths))
    names.label("cam1/0001.jpg")  # labels/cam1/0001.txt
    """

    def __init__(self, inputs: Iterable[Input] = ()) -> None:
        """Choose the names of all files of the run; streams are named on first use.

        Args:
            inputs: All files with the folders that they were listed below; a file listed twice is one input.
        """
        files: dict[str, _File] = {}
        for path, folder in inputs:
            files.setdefault(os.path.abspath(path), _File.of(path, folder))
        self._names = dict(zip(files, _settle(list(files.values())), strict=True))
        self._keys = {_key(name) for name in self._names.values()}
        self._live: dict[str, str] = {}
        self._folders = _drawn_folders(self._names.values())
        _report_told_apart(files, self._names)

    def name(self, source: str, position: int | None = None) -> str:
        """Return the name of an input or of one of its frames: subfolder and stem, without a suffix.

        Args:
            source: Path as given, or name of a stream.
            position: Index of the frame; None for an image, or for a video as a whole.
        """
        name = self._names.get(os.path.abspath(source)) or self._live_name(source)
        return f"{name}{_position_text(position)}"

    def label(self, source: str, position: int | None = None) -> str:
        """Return the name of the label file."""
        return _ended(f"labels/{self.name(source)}", f"{_position_text(position)}.txt")

    def image(self, source: str) -> str:
        """Return the name of the drawn image."""
        return _ended(self._drawn(source), ".jpg")

    def video(self, source: str) -> str:
        """Return the name of the drawn video."""
        return _ended(self._drawn(source), ".mp4")

    def crop(self, source: str, position: int | None = None, *, class_folder: str, number: int) -> str:
        """Return the name of the crop of the box at index `number`."""
        ending = f"{_position_text(position)}_{number}.jpg"
        return _ended(f"crops/{class_folder}/{self.name(source)}", ending)

    def _drawn(self, source: str) -> str:
        top, slash, rest = self.name(source).partition("/")
        return f"{self._folders.get(top, top)}{slash}{rest}"

    def _live_name(self, source: str) -> str:
        """Return a name for a camera or stream from its address, without password, query or unsafe characters."""
        if source not in self._live:
            scheme, separator, rest = source.partition("://")
            host, slash, path = re.split(r"[?#]", rest)[0].partition("/")
            address = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"
            plain = re.sub(r"[^\w.-]+", "_", address).strip("_.") or "stream"
            self._live[source] = next(form for form in _forms(plain) if _key(form) not in self._keys)
            self._keys.add(_key(self._live[source]))
        return self._live[source]


def below_common_folder(paths: Iterable[str | Path]) -> list[Input]:
    """Pair each path with the deepest folder that contains all of them."""
    files = [Path(path) for path in paths]
    folder = common_folder(files)
    return [(path, folder or path.parent) for path in files]


@lru_cache(maxsize=8)
def class_folders(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return a folder name for each class; if cleaned names are equal, the folder names also contain the ids."""
    plain = [_UNSAFE.sub("_", name).rstrip(". ") or "_" for name in names]
    counts = Counter(map(_key, plain))
    taken = set(counts)
    folders = []
    for class_id, text in enumerate(plain):
        if counts[_key(text)] > 1:
            text = next(form for form in _forms(f"{text}_{class_id}") if _key(form) not in taken)
            taken.add(_key(text))
        folders.append(text)
    return tuple(folders)


@dataclass(frozen=True, kw_only=True)
class _File:
    """An input with its preferred name.

    Attributes:
        plain: Subfolder and stem, with forward slashes.
        suffix: Suffix with its dot, in its original case.
        is_video: True if frames are named, not the file alone.
    """

    plain: str
    suffix: str
    is_video: bool

    @classmethod
    def of(cls, path: Path, folder: Path) -> _File:
        """Describe `path` by its location below `folder`; by its file name alone if it is elsewhere."""
        try:
            relative = Path(os.path.relpath(os.path.abspath(path), os.path.abspath(folder)))
        except ValueError:  # on another drive
            relative = Path(path.name)
        if relative.parts[:1] == ("..",):
            relative = Path(path.name)
        text, suffix = relative.as_posix(), path.suffix
        return cls(
            plain=text.removesuffix(suffix),
            suffix=suffix,
            is_video=suffix.lower() in VIDEO_SUFFIXES,
        )


def _settle(files: Sequence[_File]) -> list[str]:
    """Choose a unique name for each file."""
    folders = {_key(folder) for file in files for folder in _folders_of(file.plain)}
    refused = {name for folder in folders for name in _files_like(folder)}
    images = [i for i, file in enumerate(files) if not file.is_video]
    videos = [i for i, file in enumerate(files) if file.is_video]
    names = dict(zip(images, _tell_apart([files[i] for i in images], refused), strict=True))
    # clip_000012.jpg rules out `clip` for a video, whose frame 12 would have that name.
    refused |= {match[1] for name in names.values() if (match := _POSITION.fullmatch(_key(name)))}
    names |= dict(zip(videos, _tell_apart([files[i] for i in videos], refused), strict=True))
    return [names[i] for i in range(len(files))]


def _tell_apart(files: Sequence[_File], refused: Collection[str]) -> list[str]:
    """Keep plain names that only one file has; add suffixes and numbers to the others.

    Of names that differ only in case the first one is kept, which is unambiguous where both can exist.
    """
    counts = Counter(file.plain for file in files)
    plain = {_key(name) for name in counts}
    kept, taken, names = set(refused), plain | set(refused), []
    for file in files:
        name = file.plain
        if counts[name] > 1 or _key(name) in kept:
            name = next(form for form in _forms(file.plain + file.suffix) if _key(form) not in taken)
            taken.add(_key(name))
        else:
            kept.add(_key(name))
        names.append(name)
    return names


def _key(name: str) -> str:
    """Fold case and Unicode composition, so that names that some file system treats as one are equal."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _forms(text: str) -> Iterator[str]:
    """Yield the text, then the text followed by _2, _3, ..."""
    return chain([text], (f"{text}_{number}" for number in count(2)))


def _position_text(position: int | None) -> str:
    """Format the position of a frame, to follow the name of its video."""
    return "" if position is None else f"_{position:06d}"


def _ended(name: str, ending: str) -> str:
    """Add an ending; if the result is too long for a file system, replace the end of the name by a digest."""
    folder, slash, last = name.rpartition("/")
    room, encoded = LONGEST_NAME - len(ending), os.fsencode(last)
    if len(encoded) > room:
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        last = f"{encoded[: room - len(digest)].decode(errors='ignore')}{digest}"
    return f"{folder}{slash}{last}{ending}"


def _folders_of(name: str) -> Iterator[str]:
    """Return every folder on the path of a name with slashes."""
    parts = name.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts)))


def _files_like(folder: str) -> Iterator[str]:
    """Yield the names of inputs that would write a file with the name of this folder."""
    for ending in _ENDINGS:
        if folder.endswith(ending):
            name = folder.removesuffix(ending)
            yield name
            while match := _NUMBER.fullmatch(name):  # the numbers of frames and crops
                name = match[1]
                yield name


def _drawn_folders(names: Collection[str]) -> dict[str, str]:
    """Choose other names for top folders that clash with entries of the run folder, such as labels."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    taken = {*map(_key, tops), *_RUN_ENTRIES}
    return {
        top: next(form for form in _forms(top) if _key(form) not in taken)
        for top in tops
        if _key(top) in _RUN_ENTRIES
    }


def _report_told_apart(files: dict[str, _File], names: dict[str, str]) -> None:
    changed = [path for path, file in files.items() if names[path] != file.plain]
    if changed:
        logger.warning(
            "%d of %d files would share an output with another; their outputs are named differently, such as "
            "labels/%s.txt of %s",
            len(changed),
            len(files),
            names[changed[0]],
            changed[0],
        )
