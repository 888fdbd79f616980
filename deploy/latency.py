"""Milliseconds that a runtime takes for a batch, measured one after another on the same images."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

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


def measure_latency(runtime: RuntimeModel, images: Tensor, *, threads: int, runs: int = 10) -> Latency:
    """Time calls of a runtime.

    Args:
        runtime: Loaded with this number of threads.
        images: (B, 3, H, W) in [0, 1].
        threads: To be named with the result.
        runs: Timed calls, after two that are not.
    """
    seconds = []
    for run in range(_WARM_UP + runs):
        start = time.perf_counter()
        runtime(images)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        if run >= _WARM_UP:
            seconds.append(time.perf_counter() - start)
    return Latency(fastest=1000 * min(seconds), median=1000 * statistics.median(seconds), runs=runs, threads=threads)
