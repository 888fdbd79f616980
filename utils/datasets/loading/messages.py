"""Messages between a process and its workers: tensors and arrays are sent in anonymous memory files.

Such a file (Linux's memfd) is in memory but not in /dev/shm, so the size of that mount, 64 MB in a Docker container,
does not matter. If the system has no such files, or refuses one, the same bytes are sent through the pipe.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from utils.errors import WorkerError

# Alignment of the start of each array in bytes: a cache line.
_ALIGNMENT = 64


def send(connection: Connection, message: object) -> None:
    """Send `message`, whose tensors must be on the CPU.

    Raises:
        OSError: The other end is closed.
    """
    parts = _parts(message)
    file = _memory_file(parts)
    connection.send(([len(part) for part in parts], file is not None))
    if file is None:
        for part in parts:
            connection.send_bytes(part)
        return
    # Imported late because Windows has no such function.
    from multiprocessing.reduction import send_handle

    try:
        send_handle(connection, file, os.getpid())
    finally:
        os.close(file)


def receive(connection: Connection) -> Any:
    """Return the message that `send` sent; its tensors are views of the memory in which it arrived.

    Raises:
        EOFError: The other end is closed.
        OSError: The other end was closed within a message, or the system refuses to map the memory.
        WorkerError: The file with the message was lost in transit.
    """
    sizes, is_file = connection.recv()
    offsets = _offsets(sizes)
    block = _map_file(connection, offsets[-1]) if is_file else _read_bytes(connection, sizes, offsets)
    view = memoryview(block)
    *buffers, body = (view[start : start + size] for start, size in zip(offsets, sizes, strict=False))
    return pickle.loads(body, buffers=buffers)


class _Pickler(pickle.Pickler):
    """A pickler that saves tensors as arrays, whose data protocol 5 can keep out of the stream."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _parts(message: object) -> list[memoryview]:
    """Return the data of each array, followed by the pickle that refers to them."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(message)
    return [*(buffer.raw() for buffer in buffers), stream.getbuffer()]


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Return the start of each part, followed by the total size, in bytes."""
    return [0, *accumulate(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)]


def _memory_file(parts: Sequence[memoryview]) -> int | None:
    """Write the parts into a new anonymous file; return None if the system provides none."""
    if not hasattr(os, "memfd_create"):
        return None
    file = None
    try:
        file = os.memfd_create("batch")
        offsets = _offsets([len(part) for part in parts])
        for part, offset in zip(parts, offsets, strict=False):
            _write(file, part, offset)
        os.ftruncate(file, offsets[-1])
    except OSError:
        if file is not None:
            os.close(file)
        return None
    return file


def _write(file: int, part: memoryview, offset: int) -> None:
    """Write all of `part`; one system call writes at most 2 GB."""
    while part:
        count = os.pwrite(file, part, offset)
        part, offset = part[count:], offset + count


def _map_file(connection: Connection, size: int) -> mmap.mmap:
    from multiprocessing.reduction import recv_handle

    try:
        file = recv_handle(connection)
    except RuntimeError as error:  # the file was lost in transit
        raise WorkerError(
            "a batch was lost, as happens with too many open files; raise the limit (ulimit -n)"
        ) from error
    try:
        return mmap.mmap(file, size)
    finally:
        os.close(file)


def _read_bytes(connection: Connection, sizes: Sequence[int], offsets: Sequence[int]) -> bytearray:
    block = bytearray(offsets[-1])
    for size, offset in zip(sizes, offsets, strict=False):
        if size:
            connection.recv_bytes_into(block, offset)
        else:
            connection.recv_bytes()
    return block
