"""Training images per second, ours against the PyPI package `yolov5`, side by side in one run.

    python -m benchmarks.training_speed --peer-python /path/to/venv/with/yolov5==7.0.14/bin/python

Both train the same architecture (yolov5s v6.x: the peer has no other) from scratch on BCCD, same size and batch,
pictures in memory, mosaic on, each with its own defaults for precision and memory format. Epochs are timed from their
first to their last batch, without validation; the fastest of each process's epochs counts, and processes alternate.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import table, write_report
from utils.config.cli import run_script
from utils.errors import ConfigError

ROOT = Path(__file__).parents[1]
NUM_IMAGES = 205  # of BCCD's train split

# What the peer needs to run at all here: its torchvision cannot load its compiled part beside a CPU-only torch, it
# wants to fetch a font, it calls what numpy 2 renamed, and without validation it fails. None of it is timed.
PEER = """
import os, sys, time, numpy, torch
if not torch.cuda.is_available():
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import torchvision
torchvision.ops.nms = lambda boxes, scores, iou: scores.argsort(descending=True)
numpy.trapz = numpy.trapezoid
import yolov5.utils.general as general
general.check_font = lambda *args, **kwargs: None
from yolov5.train import main, parse_opt
from yolov5.utils.callbacks import Callbacks
data, project, size, batch, epochs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
seconds, start = [], [0.0]
def begin(): start[0] = time.perf_counter()
def finish(**_):
    seconds.append(time.perf_counter() - start[0])
    if len(seconds) == epochs:
        print("SECONDS", seconds, flush=True)
        os._exit(0)
callbacks = Callbacks()
callbacks.register_action("on_train_epoch_start", callback=begin)
callbacks.register_action("on_train_epoch_end", callback=finish)
sys.argv = sys.argv[:1]
opt = parse_opt(True)
settings = dict(data=data, weights="", cfg="yolov5s.yaml", imgsz=size, batch_size=batch, epochs=epochs + 1,
                nosave=True, noplots=True, noautoanchor=True, workers=1, cache="ram",
                device="cpu", project=project)
for name, value in settings.items():
    setattr(opt, name, value)
main(opt, callbacks)
"""

OURS = """
import sys
from commands.train_config import TrainConfig
from engine.training.hooks import Hook
from commands.train import run_training
data, project, size, batch, epochs = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
class Seconds(Hook):
    def __init__(self): self.total, self.seconds = 0.0, []
    def epoch_end(self, trainer):
        self.seconds.append(trainer.state.seconds - self.total)
        self.total = trainer.state.seconds
        if len(self.seconds) == epochs:
            trainer.state.stop = True
            print("SECONDS", self.seconds, flush=True)
hook = Seconds()
run_training(TrainConfig(data=data, cfg="yolov5s-v6.yaml", img_size=(size,), batch_size=batch, epochs=epochs + 1,
                         notest=True, nosave=True, noplots=True, noautoanchor=True, workers=1, cache_images=True,
                         device="cpu", project=project), hooks=lambda model, config, folder: [hook])
"""


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Compare training speed with the PyPI package yolov5 7.0.14."""

    peer_python: str  # Python of an environment that has yolov5==7.0.14
    rounds: int = 2  # processes of each kind, alternating
    epochs: int = 2  # per process
    img_size: int = 320
    batch_size: int = 16


def measure(config: SpeedConfig) -> None:
    """Run both, alternating, and write the report."""
    speeds: dict[str, list[float]] = {"ours": [], "yolov5 7.0.14": []}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "bccd.yaml"
        data.write_text(
            f"path: {ROOT / 'data/bccd'}\ntrain: images/train\nval: images/val\nnc: 3\nnames: [RBC, WBC, Platelets]\n"
        )
        sizes = [str(value) for value in (config.img_size, config.batch_size, config.epochs)]
        for _ in range(config.rounds):
            for name, python, code in (("ours", sys.executable, OURS), ("yolov5 7.0.14", config.peer_python, PEER)):
                command = [python, "-c", code, str(data), f"{folder}/{len(speeds[name])}{name[:4]}", *sizes]
                speeds[name].append(NUM_IMAGES / min(_seconds(command, Path(folder), is_ours=name == "ours")))
    ours, peer = (statistics.median(speeds[name]) for name in speeds)
    rows = [[name, *(f"{speed:.1f}" for speed in values)] for name, values in speeds.items()]
    body = table(["images/s", *(f"round {i + 1}" for i in range(config.rounds))], rows)
    body += f"\n\nRatio of the medians: **{ours / peer:.2f}**"
    path = write_report(
        "training_speed",
        title="Training speed against the PyPI package yolov5",
        body=body,
        facts={"model": "yolov5s v6.x layout, BCCD, from scratch", "size and batch": f"{sizes[0]} px, {sizes[1]}"},
    )
    sys.stdout.write(f"{body}\nwritten to {path}\n")


def _seconds(command: list[str], folder: Path, *, is_ours: bool) -> list[float]:
    """Seconds of each epoch, as the child prints them."""
    # Importing our packages changed how OpenMP waits; the peer is to run as its users start it.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        command, cwd=ROOT if is_ours else folder, capture_output=True, text=True, check=False, env=environment
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    if not lines:
        raise ConfigError(f"{command[0]} did not finish: {done.stderr.strip().splitlines()[-1:]}")
    seconds: list[float] = json.loads(lines[0].removeprefix("SECONDS"))
    return seconds


if __name__ == "__main__":
    run_script(measure, SpeedConfig)
