"""Write and read the compact file of a quantised network: an npz of two members.

`header` contains JSON in UTF-8: the record of records.py, where every list of numbers is replaced by a list
[count, low, bits, start, bytes] that describes how to read it (coding.py). `streams` contains the bytes of these
lists, one after another in the order of the header. Real numbers in the lists are the 64 bits of a double read as an
integer; those in the header itself are decimals that give the same double again. Indices of sparse weights are stored
as gaps, the number of omitted entries before each.

There is not one npz member per array, since 40 small members would cost LeNet5 more bytes than its biases and scales.
Each list is deflated alone, since values and gaps have different statistics, and together they take a tenth more
(LeNet5, 90 % zeros).
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from quantization.choices import Layout
from quantization.program.program import FloatArray, IntArray, IntegerProgram
from quantization.storage.budget import Budget
from quantization.storage.checks import check_fingerprint, check_program
from quantization.storage.coding import Stream, decode, encode
from quantization.storage.records import program_from_record, program_record
from quantization.storage.sparse import Parts, check_layout, from_gaps, to_gaps
from utils.errors import CheckpointError
from utils.storage.files import ZIP_ERRORS, atomic_write

_KIND = "quantised network"
_HEADER, _STREAMS = "header", "streams"
# Deflate cannot do better than 1032 to 1.
_MOST_DEFLATED = 1032
# The npy format 1.0 of an array (N,) of bytes. numpy's own reader allocates memory for any N that a file declares.
_NPY_HEAD = re.compile(
    rb"\x93NUMPY\x01\x00v\x00\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,12}),\), \} *\n"
)


def save_program(program: IntegerProgram, path: str | Path, *, layout: str = "dense") -> None:
    """Write a quantised network as one compact file.

    Args:
        program: Network to write.
        path: Path of the file, usually `*.npz`.
        layout: Layout of the weights: dense, coo, csr or csc. The same integers are read back from all of them.

    Raises:
        CheckpointError: The program is not valid.
        ConfigError: There is no such layout, or the file cannot be written.
    """
    data = program_bytes(program, layout=layout)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def load_program(path: str | Path, *, fingerprint: str | None = None) -> IntegerProgram:
    """Read what `save_program` wrote.

    Args:
        path: Path of the file.
        fingerprint: Fingerprint of the expected network; None accepts any.

    Raises:
        CheckpointError: The file is missing, of another kind, version or network, or damaged.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        remedy = "give the network.npz in it" if Path(path).is_dir() else "check the path"
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; {remedy}") from None
    try:
        program = program_from_bytes(data)
        check_fingerprint(program, fingerprint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return program


def program_bytes(program: IntegerProgram, *, layout: str) -> bytes:
    """Return the content of the file; see `save_program`."""
    check_program(program)
    numbers = _Writer()
    record = program_record(program, kind_of_file=_KIND, layout=check_layout(layout), numbers=numbers)
    header = json.dumps(record, separators=(",", ":"), allow_nan=False).encode()
    return _packed({_HEADER: header, _STREAMS: b"".join(numbers.streams)})


def program_from_bytes(data: bytes) -> IntegerProgram:
    """Undo `program_bytes`; see `load_program`."""
    members = _unpacked(data)
    try:
        record = json.loads(members[_HEADER])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its header is not JSON ({error}); the file is damaged, write it again") from None
    numbers = _Reader(members[_STREAMS], budget=Budget(len(data)))
    program = program_from_record(record, kind_of_file=_KIND, numbers=numbers)
    numbers.check_end()
    check_program(program)
    return program


class _Writer:
    """Encodes numbers as streams, and collects the streams."""

    def __init__(self) -> None:
        self.streams: list[bytes] = []

    def integers(self, values: IntArray) -> list[int | None]:
        stream, data = encode(values)
        self.streams.append(data)
        return stream.as_list()

    def floats(self, values: FloatArray) -> list[int | None]:
        return self.integers(np.ascontiguousarray(values, np.float64).view(np.int64))

    def parts(self, parts: Parts, *, layout: Layout, shape: tuple[int, int]) -> dict[str, Any]:
        return {name: self.integers(values) for name, values in to_gaps(parts, layout=layout).items()}


class _Reader:
    """Decodes streams to numbers, in the order in which they were written."""

    def __init__(self, streams: bytes, *, budget: Budget) -> None:
        self.budget = budget
        self._streams = streams
        self._at = 0

    def integers(self, value: Any) -> IntArray:
        stream = Stream.from_list(value)
        data = self._streams[self._at : self._at + stream.num_bytes]
        self._at += stream.num_bytes
        return decode(stream, data, budget=self.budget)

    def floats(self, value: Any) -> FloatArray:
        return self.integers(value).view(np.float64)

    def parts(self, values: Mapping[str, Any], *, layout: Layout, shape: tuple[int, int]) -> Parts:
        parts = {name: self.integers(value) for name, value in values.items()}
        return from_gaps(parts, layout=layout, shape=shape)

    def check_end(self) -> None:
        if self._at != len(self._streams):
            raise CheckpointError(
                f"{len(self._streams)} bytes of numbers, expected {self._at}; the file is damaged, write it again"
            )


def _packed(members: Mapping[str, bytes]) -> bytes:
    """Pack members into an npz; the same members always give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compresslevel=9) as archive:
        for name, content in members.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.frombuffer(content, np.uint8), allow_pickle=False)
            # Streams are deflated already. ZipInfo's own date is a fixed one.
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED if name == _HEADER else zipfile.ZIP_STORED
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def _unpacked(data: bytes) -> dict[str, bytes]:
    """Read the members of an npz, none larger than deflate could produce from the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: _member(archive, f"{name}.npy", len(data)) for name in (_HEADER, _STREAMS)}
    except (*ZIP_ERRORS, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"not a complete file of a quantised network ({reason}); copy or write it again, or give another"
        ) from None


def _member(archive: zipfile.ZipFile, name: str, num_bytes: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > _MOST_DEFLATED * num_bytes:
        raise CheckpointError(f"{name} declares {size} bytes in a file of {num_bytes}; it is forged, use another")
    raw = archive.read(name)
    head = _NPY_HEAD.match(raw)
    content = raw[head.end() :] if head else b""
    if not head or int(head[1]) != len(content):
        raise CheckpointError(f"{name} is not an array (N,) of bytes; write the file again, or give another")
    return content
