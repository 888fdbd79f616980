"""One picture of a source, and what every source can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

MediaKind: TypeAlias = Literal["image", "video", "stream"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture to look at.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        name: The file, or the camera or address it came from.
        kind: A still image, a video with an end, or a live stream.
        index: Position from 0 in its video or stream; of an image, its place among the files.
        count: Frames that the video claims to have, or the number of files; None where that is unknown.
        fps: Frames per second of the video or stream, None for an image or where it is unknown.
    """

    image: np.ndarray[Any, Any]
    name: str
    kind: MediaKind
    index: int = 0
    count: int | None = None
    fps: float | None = None


class Source(Protocol):
    """Frames in order, the files they come from, and how many of these had to be left out."""

    @property
    def inputs(self) -> Sequence[tuple[Path, Path]]:
        """Every file with the folder it was listed below; none for a camera or a stream."""

    @property
    def skipped(self) -> int:
        """Files that could not be read so far."""

    def __iter__(self) -> Iterator[Frame]:
        """The frames; a source can be walked through once."""
