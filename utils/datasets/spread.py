"""Choice of a few items that stand for many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Pick the middle item of each of `count` equal stretches, since neighbours in a list are often alike.

    Args:
        items: Items in order.
        count: Number of items to pick; all of them if there are fewer.
    """
    count = min(count, len(items))
    return [items[(2 * position + 1) * len(items) // (2 * count)] for position in range(count)]
