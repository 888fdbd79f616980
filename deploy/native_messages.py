"""Lines that libraries write past Python, straight to the process's error stream."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_messages() -> Iterator[list[str]]:
    """Keep what native code writes to the error stream meanwhile; the list is filled at the end."""
    lines: list[str] = []
    with tempfile.TemporaryFile() as capture:
        own = os.dup(2)
        os.dup2(capture.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(own, 2)
            os.close(own)
            capture.seek(0)
            lines += capture.read().decode("utf-8", errors="replace").splitlines()
