"""Times of several runtimes, call by call in turns, so that a noisy machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Times:
    """Milliseconds of one call."""

    fastest: float
    median: float


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 30, warm_up: int = 3
) -> dict[str, Times]:
    """Time each call `rounds` times, one after another, after some rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Times(fastest=1000 * min(own), median=1000 * statistics.median(own)) for name, own in seconds.items()
    }
