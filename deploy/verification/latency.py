"""Latency of several runtimes, called in turn so that a busy machine disturbs all of them equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deploy.artefact.runtime import RuntimeModel

_WARM_UP = 2


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time per call, in milliseconds.

    Attributes:
        fastest: Fastest call, which other load on the machine disturbs least.
        median: Median of all calls.
        runs: Number of timed calls.
        threads: Number of threads allowed.
    """

    fastest: float
    median: float
    runs: int
    threads: int


def measure_latencies(
    runtimes: Sequence[RuntimeModel],
    images: Tensor,
    *,
    threads: int,
    runs: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Time runtimes on the same images, calling each in turn.

    Args:
        runtimes: Runtimes loaded with this number of threads.
        images: Images (B, C, H, W) in the form of network input.
        threads: Number of threads, reported with the result.
        runs: Timed calls of each, after two untimed ones.
        clock: Clock in seconds; by default the time of day.
    """

    def call(runtime: RuntimeModel) -> None:
        runtime(images)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)

    return time_in_turns([partial(call, runtime) for runtime in runtimes], threads=threads, runs=runs, clock=clock)


def clock_for(threads: int) -> Callable[[], float]:
    """Return the clock that a busy machine disturbs least.

    One thread is timed by the processor time of this process, which leaves out pauses in which other programs ran;
    several threads wait for each other, which only the time of day shows.
    """
    return time.process_time if threads == 1 else time.perf_counter


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    *,
    threads: int,
    runs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Time several functions, calling each in turn.

    Args:
        calls: Functions to time; each returns when its work is done.
        threads: Number of threads, reported with the result.
        runs: Timed calls of each, after two untimed ones.
        clock: Clock in seconds; by default the time of day.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for run in range(_WARM_UP + runs):
        for call, own in zip(calls, seconds, strict=True):
            start = clock()
            call()
            if run >= _WARM_UP:
                own.append(clock() - start)
    return [
        Latency(fastest=1000 * min(own), median=1000 * statistics.median(own), runs=runs, threads=threads)
        for own in seconds
    ]
