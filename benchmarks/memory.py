"""Resident memory while training yolov5s at 320 px, batch 16.

    python -m benchmarks.memory

Trains on BCCD in a child and samples it five times a second: the resident memory of the training process, and
the proportional memory (shared pages counted once) of it and its loading processes together. Linux only.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import table, write_report
from utils.config.cli import run_script

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Measure the memory of a training run."""

    cfg: str = "yolov5s.yaml"
    img_size: int = 320
    batch_size: int = 16
    epochs: int = 2


def measure(config: MemoryConfig) -> None:
    """Train in a child, watch it, write the report."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--cfg", config.cfg, "--data", "data/bccd.yaml", "--project", folder]
        command += ["--img-size", str(config.img_size), "--batch-size", str(config.batch_size), "--cache-images"]
        command += ["--epochs", str(config.epochs), "--device", "cpu"]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        resident = proportional = 0
        while child.poll() is None:
            resident = max(resident, _kilobytes(child.pid, "Rss:"))
            proportional = max(proportional, sum(_kilobytes(pid, "Pss:") for pid in _family(child.pid)))
            time.sleep(0.2)
    if child.returncode:
        raise SystemExit(f"the training ended with {child.returncode}")
    rows = [
        ["training process, peak resident", f"{resident / 2**20:.2f} GiB"],
        ["with its loading processes, shared pages once", f"{proportional / 2**20:.2f} GiB"],
    ]
    path = write_report(
        "training_memory",
        title="Memory of training",
        body=table(["what", "measured"], rows),
        facts={"run": f"{config.cfg}, BCCD, {config.img_size} px, batch {config.batch_size}, pictures cached"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _family(pid: int) -> list[int]:
    """Return the process and all below it."""
    found = [pid]
    for number in found:
        for children in Path(f"/proc/{number}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # ended meanwhile
    return found


def _kilobytes(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0  # ended meanwhile
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)


if __name__ == "__main__":
    run_script(measure, MemoryConfig)
