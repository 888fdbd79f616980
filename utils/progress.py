"""Progress as one bar on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_STATES = 1.0

Item = TypeVar("Item", covariant=True)


class SizedIterable(Protocol[Item]):
    """An iterable with a length, such as a loader."""

    def __iter__(self) -> Iterator[Item]: ...

    def __len__(self) -> int: ...


def progress(
    items: SizedIterable[Item], *, description: str, state: Callable[[], str] | None = None
) -> Iterator[Item]:
    """Yield `items` while showing how many are done and the time left.

    Args:
        items: Items to yield.
        description: Word or two to show before the numbers.
        state: Function, called at most once a second, that returns text to show after the numbers.
    """
    if sys.stderr.isatty():
        yield from _bar(items, description, state)
        return
    start = last = time.monotonic()
    total = len(items)
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            left = (now - start) / done * (total - done)
            words = f", {state()}" if state else ""
            logger.info("%s %d/%d, %.0f s left%s", description, done, total, left, words)


def _bar(items: SizedIterable[Item], description: str, state: Callable[[], str] | None) -> Iterator[Item]:
    bar = tqdm(items, desc=description, dynamic_ncols=True, leave=False)
    last = time.monotonic()
    for item in bar:
        yield item
        if state and time.monotonic() - last >= SECONDS_BETWEEN_STATES:
            last = time.monotonic()
            bar.set_postfix_str(state())
