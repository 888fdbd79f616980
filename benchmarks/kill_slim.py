"""kill -9 of slim.py at moments spread over a run, then --resume: every artefact must be that of the unbroken run.

python -m benchmarks.kill_slim --moments 20
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import table, write_report
from utils.config.cli import run_script
from utils.storage.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
# Networks after each stage, and the exported files, below the run folder.
_NETWORKS = (
    "dense/weights/best.pt",
    "round1/sparse/weights/last.pt",
    "round1/prune/pruned_model.pt",
    "round1/finetune/weights/best.pt",
)
_FILES = ("export/best_ncnn_model/model.ncnn.param", "export/best_ncnn_model/model.ncnn.bin")
_STAGES = ("dense", "round1/sparse", "round1/prune", "round1/finetune", "export")


@dataclass(frozen=True, kw_only=True)
class KillSlimConfig:
    """Kill and resume runs of slim.py."""

    moments: int = 20  # kills, spread evenly over a run
    cfg: str = "yolov5n.yaml"
    img_size: int = 64
    epochs: int = 2  # of each training
    images: int = 48  # of each split: the first ones of the bundled data set


def measure(config: KillSlimConfig) -> bool:
    """Run every moment; True when all artefacts agree."""
    with tempfile.TemporaryDirectory() as folder:
        _write_data(Path(folder), config.images)
        whole = Path(folder) / "whole"
        start = time.perf_counter()
        subprocess.run(_command(config, whole), cwd=ROOT, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        rows = [_killed(number, seconds, whole, config) for number in range(config.moments)]
    equal = sum(row[-1] == "identical" for row in rows)
    path = write_report(
        "kill_slim",
        title="kill -9 of slim.py at any moment, then --resume",
        body=table(["moment", "share of the run", "complete then", "networks and exported files"], rows)
        + f"\n\n{equal} of {len(rows)} identical: {', '.join((*_NETWORKS, *_FILES))}",
        facts={
            "run": f"{config.cfg} from scratch, {config.images} images of BCCD, {config.img_size} px, "
            f"{config.epochs} epochs in each training, to half of the multiply-adds, ncnn fp32"
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")
    return equal == len(rows)


def _write_data(folder: Path, images: int) -> None:
    """Write a data set YAML over the first images of the bundled splits."""
    for split in ("train", "val"):
        paths = sorted((ROOT / "data/bccd/images" / split).glob("*.jpg"))[:images]
        (folder / f"{split}.txt").write_text("\n".join(map(str, paths)))
    (folder / "few.yaml").write_text("train: train.txt\nval: val.txt\nnc: 3\nnames: [RBC, WBC, Platelets]\n")


def _command(config: KillSlimConfig, folder: Path) -> list[str]:
    """Return the run into a folder, beside the data."""
    words = [sys.executable, "slim.py", "--cfg", config.cfg, "--img-size", str(config.img_size), "--noplots"]
    words += ["--dense-epochs", str(config.epochs), "--epochs", str(config.epochs)]
    words += ["--finetune-epochs", str(config.epochs), "--data", str(folder.with_name("few.yaml"))]
    words += ["--target", "macs=50%", "--distill", "1", "--sr", "0.005", "--scale-rate", "20"]
    words += ["--nominal-batch", "16", "--device", "cpu", "--workers", "2", "--cache-dir", str(folder.parent)]
    return [*words, "--project", str(folder.parent), "--name", folder.name]


def _killed(number: int, seconds: float, whole: Path, config: KillSlimConfig) -> list[str]:
    """Kill one run, let it go on, and compare it with the unbroken one."""
    folder = whole.with_name(f"killed{number}")
    share = (number + 0.5) / config.moments
    child = subprocess.Popen(_command(config, folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds * share)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = [name for name in _STAGES if (folder / name / "result.json").exists()]
    before = _written_at(folder, done)
    is_begun = (folder / "opt.yaml").exists()  # before that there is nothing to go on with
    again = [sys.executable, "slim.py", "--resume", str(folder)] if is_begun else _command(config, folder)
    subprocess.run(again, cwd=ROOT, check=True, capture_output=True)
    verdict = "identical" if _is_same(whole, folder) else "DIFFERENT"
    if _written_at(folder, done) != before:
        verdict = "a complete stage was run again"
    return [str(number + 1), f"{share:.1%}", ", ".join(done) or "-", verdict]


def _written_at(folder: Path, stages: Sequence[str]) -> dict[Path, int]:
    """Return when each file of the stages was written."""
    files = (path for name in stages for path in (folder / name).rglob("*") if path.is_file())
    return {path: path.stat().st_mtime_ns for path in files}


def _is_same(one: Path, two: Path) -> bool:
    for name in _NETWORKS:
        first, second = (load_checkpoint(folder / name).best_weights for folder in (one, two))
        if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in _FILES)


if __name__ == "__main__":
    run_script(measure, KillSlimConfig)
