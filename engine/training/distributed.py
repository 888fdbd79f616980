"""Distributed runs: torchrun's environment, reductions, and which process writes files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")

# The other ranks wait while rank 0 validates, which takes long on a large validation set.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class Process:
    """Rank of this process among those that torchrun started."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and log lines."""
        return self.rank == 0


def this_process() -> Process:
    """Read this process's ranks from torchrun's environment; without torchrun there is one process."""
    return Process(
        rank=int(os.environ.get("RANK", 0)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )


@contextmanager
def process_group(process: Process, device: torch.device) -> Iterator[None]:
    """Join the process group of the run (nccl on GPUs, gloo on CPUs), and leave it on exit."""
    if process.world_size == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of `value` over all processes, not differentiable; a single process gets `value` itself."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share(value: Value) -> Value:
    """Send the main process's `value` (plain data) to every process and return it."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    received: Value = box[0]
    return received


def wait_for_all() -> None:
    """Block until every process has reached this call."""
    if dist.is_initialized():
        dist.barrier()
