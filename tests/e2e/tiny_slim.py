"""Tiny runs of slim.py."""

from __future__ import annotations

import os
import socket
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from tiny import tiny_config

from commands.slim import run_slimming
from commands.slim_config import SlimConfig
from commands.slim_report import SlimResult


def slim_config(folder: Path, **settings: Any) -> SlimConfig:
    """Two rounds of the tiny network to two fifths of its parameters, without dense training and export."""
    plain = tiny_config(folder)
    values = {field.name: getattr(plain, field.name) for field in fields(plain)}
    own = {"epochs": 1, "finetune_epochs": 2, "rounds": 2, "target": "params=40%", "round": "none", "distill": 1.0}
    return SlimConfig(**{**values, **own, "stages": ("sparse", "prune", "finetune"), "sr": 0.3, **settings})


def line_config(folder: Path, **settings: Any) -> SlimConfig:
    """One round with all stages."""
    return slim_config(folder, **{"stages": (), "rounds": 1, "finetune_epochs": 1, "dense_epochs": 1, **settings})


def slimmed(config: SlimConfig) -> SlimResult:
    """The result of a run in one process."""
    result = run_slimming(config)
    assert result is not None
    return result


def written_at(folder: Path) -> dict[str, int]:
    """When each file of a folder was last written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def slim_in_two_processes(config: SlimConfig, *, rows: int) -> None:
    """Run in two processes, of which the first one gets a result with so many rows."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_slim_in_process, args=(port, config, rows), nprocs=2)  # type: ignore[no-untyped-call]


def _slim_in_process(rank: int, port: int, config: SlimConfig, rows: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    torch.set_num_threads(1)
    result = run_slimming(config)
    assert (0 if result is None else len(result.stages)) == (0 if rank else rows)
