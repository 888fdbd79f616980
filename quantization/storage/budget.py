"""Limit the numbers that a file may contain, before memory is allocated for them."""

from __future__ import annotations

from utils.errors import CheckpointError

# Most numbers of one file: twice the largest YOLOv5, 2 GiB as 64-bit integers.
_MOST = 2**28
# Numbers that any file may contain, and how many more per byte: deflate shrinks at most 1032 times, and a byte
# contains at most eight numbers that are not all equal.
_ALWAYS = 2**24
_PER_BYTE = 2**13


class Budget:
    """The numbers that may still be read from a file.

    Args:
        num_bytes: Size of the file.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._left = min(_MOST, _ALWAYS + _PER_BYTE * num_bytes)

    def take(self, count: int) -> None:
        """Use up `count` numbers.

        Raises:
            CheckpointError: Fewer are left.
        """
        if count > self._left:
            raise CheckpointError(
                f"{count} numbers are declared, which a file of {self._num_bytes} bytes cannot contain; "
                "it is damaged or forged, use another"
            )
        self._left -= count
