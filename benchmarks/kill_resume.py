"""kill -9 at a random moment, then --resume: the weights must be those of the uninterrupted run, bit for bit.

python -m benchmarks.kill_resume --seeds 10
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import table, write_report
from utils.config.cli import run_script
from utils.storage.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class KillConfig:
    """Kill and resume training runs."""

    seeds: int = 10
    cfg: str = "yolov5n.yaml"
    img_size: int = 96
    epochs: int = 4


def measure(config: KillConfig) -> bool:
    """Run every seed; True when all weights agree."""
    rows = [_one_seed(seed, config) for seed in range(config.seeds)]
    equal = sum(row[-1] == "identical" for row in rows)
    path = write_report(
        "kill_resume",
        title="kill -9 at a random moment, then --resume",
        body=table(["seed", "killed after", "checkpoint then held", "weights against the uninterrupted run"], rows)
        + f"\n\n{equal} of {len(rows)} identical, last.pt and best.pt both compared",
        facts={"run": f"{config.cfg}, BCCD, {config.img_size} px, batch 16, {config.epochs} epochs, bf16, 2 workers"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")
    return equal == len(rows)


def _one_seed(seed: int, config: KillConfig) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", "--cfg", config.cfg, "--img-size", str(config.img_size), "--noplots"]
        command += ["--epochs", str(config.epochs), "--batch-size", "16", "--seed", str(seed), "--project", folder]
        command += ["--device", "cpu", "--cache-images", "--workers", "2"]
        start = time.perf_counter()
        subprocess.run([*command, "--name", "whole"], cwd=ROOT, check=True, capture_output=True)
        whole = time.perf_counter() - start

        last = Path(folder) / "killed/weights/last.pt"
        child = subprocess.Popen([*command, "--name", "killed"], cwd=ROOT, stdout=subprocess.DEVNULL)
        while not last.exists():
            time.sleep(0.05)
        # From the first checkpoint on, any moment but the clean-up at the very end.
        moment = random.Random(seed).uniform(0, whole * 0.6)
        time.sleep(moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
        epoch = load_checkpoint(last).epoch
        resume = [sys.executable, "train.py", "--resume", str(last)]
        subprocess.run(resume, cwd=ROOT, check=True, capture_output=True)
        same = all(_same(Path(folder), name) for name in ("last.pt", "best.pt"))
        return [str(seed), f"{moment:.1f} s", f"epoch {epoch + 1}", "identical" if same else "DIFFERENT"]


def _same(folder: Path, name: str) -> bool:
    one, two = (load_checkpoint(folder / run / "weights" / name).best_weights for run in ("whole", "killed"))
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


if __name__ == "__main__":
    run_script(measure, KillConfig)
