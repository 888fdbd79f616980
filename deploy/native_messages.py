"""Capture of what native libraries write directly to the process's error stream."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_messages() -> Iterator[list[str]]:
    """Capture the lines that native code writes to the error stream; the list is filled on exit."""
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
