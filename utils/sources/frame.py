"""One frame of a source, and the interface of every source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

MediaKind: TypeAlias = Literal["image", "video", "stream"]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One image to detect on.

    Attributes:
        image: Pixels (H, W, 3) uint8 RGB.
        name: File, camera or address that it came from.
        kind: Kind of medium: a still image, a video with an end, or a live stream.
        index: Position from 0 in its video or stream; for an image, among the files.
        count: Number of frames that the video claims to have, or of files; None if unknown.
        fps: Frames per second of the video or stream; None for an image or if unknown.
    """

    image: np.ndarray[Any, Any]
    name: str
    kind: MediaKind
    index: int = 0
    count: int | None = None
    fps: float | None = None


class Source(Protocol):
    """The interface of a source: frames in order, their files, and the number of files that were skipped."""

    @property
    def inputs(self) -> Sequence[tuple[Path, Path]]:
        """Files with the folders that they were listed below; none for a camera or a stream."""

    @property
    def skipped(self) -> int:
        """Number of files that could not be read so far."""

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames; a source can be iterated only once."""
