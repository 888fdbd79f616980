"""Source of images and videos on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from utils.datasets.reading.images import read_image
from utils.errors import DataError
from utils.sources.frame import Frame
from utils.sources.video import VIDEO_SUFFIXES, capture, recorded_frames

logger = logging.getLogger(__name__)


def common_folder(paths: Iterable[str | Path]) -> Path | None:
    """Return the deepest folder that contains all paths; None without paths, and for paths on several drives."""
    parents = {os.path.dirname(os.path.abspath(path)) for path in paths}
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:
        return None


class FileSource:
    """A source of images and videos in the given order.

    A file that cannot be read is skipped with a warning and counted; if it is the only one, it is an error.
    """

    inputs: tuple[tuple[Path, Path], ...] = ()

    def __init__(self, paths: Sequence[Path], *, below: Path | None = None) -> None:
        """Set up the source.

        Args:
            paths: Image and video files.
            below: Folder that all paths were listed below; None for the folder of each file.
        """
        self.paths = tuple(paths)
        self.inputs = tuple((path, below or path.parent) for path in self.paths)
        self.skipped = 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames of all files.

        Raises:
            DataError: None of the files could be read.
        """
        for place, path in enumerate(self.paths):
            try:
                yield from self._frames_of(path, place)
            except DataError as error:
                if len(self.paths) == 1:
                    raise
                self.skipped += 1
                logger.warning("skipped: %s", error)
        if self.skipped == len(self.paths):
            raise DataError(f"none of the {self.skipped} files could be read; see the reasons in the lines above")

    def _frames_of(self, path: Path, place: int) -> Iterator[Frame]:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            with capture(str(path)) as handle:
                yield from recorded_frames(handle, name=str(path))
        else:
            image = read_image(path)
            yield Frame(image=image, name=str(path), kind="image", index=place, count=len(self.paths))
