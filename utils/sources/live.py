"""Source of frames from cameras and network streams: always the newest one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from utils.errors import DataError
from utils.sources.frame import Frame
from utils.sources.video import capture, frame_count, frame_rate, recorded_frames, without_password

logger = logging.getLogger(__name__)

# Seconds between the consumer's checks that the reader is alive.
_PATIENCE = 0.5


class LiveSource:
    """A source of frames from a camera, or an RTSP, RTMP or HTTP address.

    A thread reads continuously and keeps only the newest frame, so that a slow detector does not fall behind. A
    broken connection is reopened after `first_wait` seconds, then after twice that, and so on; the source ends after
    `max_retries` failed attempts in a row. If the address is of a video with an end, every frame is read instead.
    """

    inputs: tuple[tuple[Path, Path], ...] = ()

    def __init__(self, address: str | int, *, max_retries: int = 5, first_wait: float = 1.0) -> None:
        self.address = address
        self.name = f"camera {address}" if isinstance(address, int) else without_password(address)
        self.skipped = 0
        self._max_retries = max_retries
        self._first_wait = first_wait
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._newest: Frame | None = None
        self._is_over = False

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the stream ends or the consumer stops.

        Raises:
            DataError: The first connection fails.
        """
        with capture(self.address) as handle:
            if frame_count(handle) is not None:
                yield from recorded_frames(handle, name=self.name)
                return
            reader = threading.Thread(target=self._read_until_over, args=(handle,), name="stream reader", daemon=True)
            reader.start()
            try:
                while (frame := self._next_frame()) is not None:
                    yield frame
            finally:
                self._stopped.set()
                reader.join()

    def _next_frame(self) -> Frame | None:
        """Wait for a frame that was not returned yet; return None at the end."""
        with self._changed:
            while self._newest is None and not self._is_over:
                self._changed.wait(_PATIENCE)
            frame, self._newest = self._newest, None
            return frame

    def _read_until_over(self, handle: Any) -> None:
        """Read the open connection, then reconnect until that fails too often; runs in the thread."""
        try:
            index = self._keep_newest(handle, first_index=0)
            retries = 0
            while retries < self._max_retries and not self._wait_before(retries):
                retries += 1
                try:
                    with capture(self.address) as again:
                        next_index = self._keep_newest(again, first_index=index)
                except DataError as error:
                    logger.warning("%s (attempt %d of %d)", error, retries, self._max_retries)
                    continue
                if next_index > index:
                    index, retries = next_index, 0
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _wait_before(self, retries: int) -> bool:
        """Back off; return True if the consumer has stopped meanwhile."""
        if self._stopped.is_set():
            return True
        wait = self._first_wait * 2**retries
        logger.warning("%s sends no frames; connecting again in %.1f s", self.name, wait)
        return self._stopped.wait(wait)

    def _keep_newest(self, handle: Any, *, first_index: int) -> int:
        """Read until the connection breaks or the consumer stops; return the index of the next frame."""
        fps = frame_rate(handle)
        index = first_index
        while not self._stopped.is_set():
            is_read, picture = handle.read()
            if not is_read:
                break
            image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            with self._changed:
                self._newest = Frame(image=image, name=self.name, kind="stream", index=index, fps=fps)
                self._changed.notify_all()
            index += 1
        return index
