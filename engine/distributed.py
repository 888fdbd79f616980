"""One process or many: torchrun's environment, reductions, and who writes files."""

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

# Ranks wait for the first one while it validates; a large validation set takes its time.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class Process:
    """This process among those of the run, as torchrun starts them."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0


def this_process() -> Process:
    """Read torchrun's environment; a plain start is one process."""
    return Process(
        rank=int(os.environ.get("RANK", 0)),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        world_size=int(os.environ.get("WORLD_SIZE", 1)),
    )


@contextmanager
def process_group(process: Process, device: torch.device) -> Iterator[None]:
    """Join the run's processes (nccl on GPUs, gloo on CPUs) and leave them at the end."""
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
    """The mean of `value` over all processes; the value itself in a single one. Not differentiable."""
    if not dist.is_initialized():
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def share(value: Value) -> Value:
    """The main process's `value` (plain data), on every process."""
    if not dist.is_initialized():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    received: Value = box[0]
    return received


def wait_for_all() -> None:
    """Return once every process got here."""
    if dist.is_initialized():
        dist.barrier()
