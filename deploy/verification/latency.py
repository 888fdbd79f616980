"""Milliseconds that runtimes take, call by call in turns, so that a busy machine disturbs all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deploy.runtime import RuntimeModel

_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one call in milliseconds.

    Attributes:
        fastest: What the machine can do; others on it disturb this number least.
        median: What it did.
        runs: How many were timed.
        threads: That were allowed.
    """

    fastest: float
    median: float
    runs: int
    threads: int


def measure_latencies(
    runtimes: Sequence[RuntimeModel], images: Tensor, *, threads: int, runs: int = 10
) -> list[Latency]:
    """Time calls of runtimes, one of each at a time.

    Args:
        runtimes: Loaded with this number of threads.
        images: (B, 3, H, W) in [0, 1].
        threads: To be named with the result.
        runs: Timed calls of each, after two that are not.
    """

    def call(runtime: RuntimeModel) -> None:
        runtime(images)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)

    return time_in_turns([partial(call, runtime) for runtime in runtimes], threads=threads, runs=runs)


def time_in_turns(calls: Sequence[Callable[[], object]], *, threads: int, runs: int) -> list[Latency]:
    """Time calls, one of each at a time; they return when their work is done.

    Args:
        calls: What is timed.
        threads: To be named with the result.
        runs: Timed calls of each, after two that are not.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for run in range(_WARM_UP + runs):
        for call, own in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if run >= _WARM_UP:
                own.append(time.perf_counter() - start)
    return [
        Latency(fastest=1000 * min(own), median=1000 * statistics.median(own), runs=runs, threads=threads)
        for own in seconds
    ]
