"""How many numbers a file may hold, asked before memory is taken for them."""

from __future__ import annotations

from utils.errors import CheckpointError

# Of one file: twice the largest YOLOv5, 2 GiB as 64-bit integers.
_MOST = 2**28
# Any file may hold so many, and one byte so many more: deflate shrinks at most 1032 times, and a byte holds at
# most eight numbers that are not all alike.
_ALWAYS = 2**24
_PER_BYTE = 2**13


class Budget:
    """What is left of it.

    Args:
        num_bytes: Size of the file.
    """

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._left = min(_MOST, _ALWAYS + _PER_BYTE * num_bytes)

    def take(self, count: int) -> None:
        """Use up part of it.

        Raises:
            CheckpointError: More than is left.
        """
        if count > self._left:
            raise CheckpointError(
                f"{count} numbers are declared, which a file of {self._num_bytes} bytes does not hold; "
                "it is damaged or made up, use another"
            )
        self._left -= count
