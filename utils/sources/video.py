"""Reading videos and streams through OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2

from utils.errors import DataError
from utils.sources.frame import Frame, MediaKind
from utils.storage.files import is_unicode

VIDEO_SUFFIXES = frozenset(
    (".asf", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
)
# A dead address must not delay a run for OpenCV's default of 30 s.
_NETWORK_TIMEOUT_MS = 10_000


@contextmanager
def capture(address: str | int) -> Iterator[Any]:
    """Open a video file, camera or address as a cv2.VideoCapture, and release it at the end.

    Raises:
        DataError: The video, camera or address cannot be opened.
    """
    if isinstance(address, str) and not is_unicode(address):
        raise DataError(f"video {address} cannot be opened: its name is not UTF-8; rename it")
    handle = _open_quietly(address)
    try:
        if not handle.isOpened():
            if isinstance(address, int):
                raise DataError(f"camera {address} cannot be opened; check its number and whether it is in use")
            if "://" in address:
                raise DataError(
                    f"stream {without_password(address)} cannot be opened; check the address and the network"
                )
            raise DataError(f"video {address} cannot be decoded; check that it plays, or convert it to mp4")
        yield handle
    finally:
        handle.release()


def without_password(address: str) -> str:
    """Return the address without user and password, for logs and file names."""
    scheme, separator, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def _open_quietly(address: str | int) -> Any:
    """Open without OpenCV's own lines on stderr if it fails; our message replaces them."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if isinstance(address, int):
            return cv2.VideoCapture(address)
        timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _NETWORK_TIMEOUT_MS]
        timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, _NETWORK_TIMEOUT_MS]
        return cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts if "://" in address else [])
    finally:
        cv2.utils.logging.setLogLevel(level)


def frame_rate(handle: Any) -> float | None:
    """Return the frames per second that the stream claims, None if the number is unusable."""
    fps = float(handle.get(cv2.CAP_PROP_FPS))
    return fps if 0 < fps <= 1000 else None


def frame_count(handle: Any) -> int | None:
    """Return the number of frames that the container claims, None for a live stream."""
    count = int(handle.get(cv2.CAP_PROP_FRAME_COUNT))
    return count if count > 0 else None


def recorded_frames(handle: Any, *, name: str, kind: MediaKind = "video") -> Iterator[Frame]:
    """Yield every frame of an open video, in order.

    Raises:
        DataError: No frame can be decoded.
    """
    fps, count = frame_rate(handle), frame_count(handle)
    index = 0
    while True:
        is_read, picture = handle.read()
        if not is_read:
            break
        yield Frame(
            image=cv2.cvtColor(picture, cv2.COLOR_BGR2RGB),
            name=name,
            kind=kind,
            index=index,
            count=count,
            fps=fps,
        )
        index += 1
    if index == 0:
        raise DataError(f"video {name} contains no frame that can be decoded; check that it plays")
