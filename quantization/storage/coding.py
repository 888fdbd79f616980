"""Encode integers exactly in few bytes.

A stream contains the numbers minus the smallest one, so that none is negative, in as few bits as the largest needs:
below 8 bits packed, the first number in the lowest bits; from 8 bits on in whole bytes, all the lowest bytes first,
then all the next ones, since high bytes are nearly equal. Differences may be stored instead of the numbers. Raw
deflate (RFC 1951) is applied last. Differences or numbers, and packed bits or whole bytes (deflate finds repeated
bytes, not bits), are chosen by trying all of them.
"""

from __future__ import annotations

import zlib
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from quantization.program.program import IntArray
from quantization.storage.budget import Budget
from utils.errors import CheckpointError

_RAW_DEFLATE = -15
# Unsigned 64-bit arithmetic wraps around, which makes differences exact even if they overflow.
_WRAP = 2**64
_LEAST, _MOST = -(2**63), 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Description of encoded numbers.

    Attributes:
        count: Number of encoded numbers.
        low: Offset to add to each stored number.
        bits: Bits of each number, 0 (all equal `low`) to 64; above 8 a multiple of 8.
        start: First number, if the others are stored as differences; else None.
        num_bytes: Size in bytes after deflate.
    """

    count: int
    low: int
    bits: int
    start: int | None
    num_bytes: int

    def as_list(self) -> list[int | None]:
        """Return the fields in order, as stored in the header of a file."""
        return list(astuple(self))

    @staticmethod
    def from_list(values: object) -> Stream:
        """Undo `as_list`.

        Raises:
            CheckpointError: The values are not the fields of a stream, or are out of range.
        """
        match values:
            case [int(count), int(low), int(bits), int() | None as start, int(num_bytes)]:
                stream = Stream(count=count, low=low, bits=bits, start=start, num_bytes=num_bytes)
            case _:
                raise CheckpointError(
                    "a list of numbers is not described as such; the file is damaged, write it again"
                )
        is_width = 0 <= bits <= 8 or bits in range(16, 65, 8)
        is_in_range = all(_LEAST <= number <= _MOST for number in (low, start or 0))
        is_size = 0 <= count <= _MOST and 0 <= num_bytes <= _MOST
        if not is_width or not is_in_range or not is_size or (start is not None and count == 0):
            raise CheckpointError("a list of numbers is declared out of range; the file is damaged, write it again")
        return stream


def encode(values: IntArray) -> tuple[Stream, bytes]:
    """Encode numbers (N,); return the description and the bytes."""
    numbers = np.ascontiguousarray(values, np.int64)
    tries = [_encode(numbers, start=None, is_packed=packed) for packed in (True, False)]
    if len(numbers) > 1:
        # The first number is not among the differences: it may be far from all of them.
        steps, start = np.diff(numbers), int(numbers[0])
        tries += [_encode(steps, start=start, is_packed=packed) for packed in (True, False)]
    return min(tries, key=lambda item: item[0].num_bytes)


def decode(stream: Stream, data: bytes, *, budget: Budget) -> IntArray:
    """Undo `encode`.

    Raises:
        CheckpointError: The bytes do not match the stream's description, or exceed the budget of the file.
    """
    budget.take(stream.count)
    count = stream.count - (stream.start is not None)
    num_bytes = -(-count * stream.bits // 8)
    offsets = _offsets(_inflate(data, num_bytes), count=count, bits=stream.bits)
    numbers = (offsets + np.uint64(stream.low % _WRAP)).view(np.int64)
    if stream.start is None:
        return numbers
    return np.cumsum(np.concatenate(([stream.start], numbers)), dtype=np.int64)


def _encode(numbers: IntArray, *, start: int | None, is_packed: bool) -> tuple[Stream, bytes]:
    low = int(numbers.min(initial=_MOST)) if len(numbers) else 0
    bits = (int(numbers.max()) - low).bit_length() if len(numbers) else 0
    if bits > 8 or not is_packed:
        bits = -(-bits // 8) * 8
    raw = _bytes(numbers.view(np.uint64) - np.uint64(low % _WRAP), bits=bits)
    deflate = zlib.compressobj(level=9, wbits=_RAW_DEFLATE)
    data = deflate.compress(raw) + deflate.flush() if raw else b""
    count = len(numbers) + (start is not None)
    return Stream(count=count, low=low, bits=bits, start=start, num_bytes=len(data)), data


def _bytes(offsets: NDArray[np.uint64], *, bits: int) -> bytes:
    planes = offsets.astype("<u8").view(np.uint8).reshape(-1, 8)  # (N, 8), lowest byte first
    if bits < 8:
        each = np.unpackbits(planes[:, :1], axis=1, bitorder="little")[:, :bits]
        return np.packbits(each, bitorder="little").tobytes()
    return planes[:, : bits // 8].T.tobytes()


def _offsets(raw: bytes, *, count: int, bits: int) -> NDArray[np.uint64]:
    planes = np.zeros((count, 8), np.uint8)
    stored = np.frombuffer(raw, np.uint8)
    if bits < 8:
        each = np.unpackbits(stored, count=count * bits, bitorder="little").reshape(count, bits)
        planes[:, :1] = np.packbits(each, axis=1, bitorder="little") if bits else 0
    else:
        planes[:, : bits // 8] = stored.reshape(-1, count).T
    return planes.view("<u8").reshape(count).astype(np.uint64)


def _inflate(data: bytes, num_bytes: int) -> bytes:
    """Inflate exactly `num_bytes` bytes; at most one more is ever produced."""
    if num_bytes == 0 and not data:
        return b""
    inflate = zlib.decompressobj(_RAW_DEFLATE)
    try:
        raw = inflate.decompress(data, num_bytes + 1)
    except zlib.error as error:
        raise CheckpointError(f"numbers cannot be unpacked: {error}; the file is damaged, write it again") from None
    if len(raw) != num_bytes or not inflate.eof or inflate.unused_data:
        raise CheckpointError(
            f"numbers do not fill the {num_bytes} bytes declared; the file is damaged, write it again"
        )
    return raw
