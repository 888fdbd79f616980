"""Everything that only a GPU can show, in one command of at most 25 minutes.

    python -m benchmarks.gpu_suite

(`--device cpu --img-size 64 --batch-size 4 --steps 2 --epochs 1 --short-epochs 1` only shows that it runs.)

Training speed of yolov5s at 640 px, batch 64, bf16, from memory and through the loader; float16, bfloat16 and float32
against each other; one process under nccl; a longer BCCD training. Later work adds its own parts to `PARTS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import table, write_report
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from engine.losses.detection import DetectionLoss, LossGains
from engine.training.optim import build_optimizer
from models.detector import Detector, build_model
from models.spec import ModelSpec
from utils.config.cli import run_script
from utils.config.hyp import Hyp
from utils.errors import ConfigError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Measure what only a GPU can show."""

    device: str = "cuda"
    weights: str = ""  # start of the longer training; empty trains yolov5s from scratch
    img_size: int = 640
    batch_size: int = 64
    steps: int = 60  # timed steps from memory
    epochs: int = 150  # of the longer training
    short_epochs: int = 12  # of the training through the loader
    workers: int = 16


def run_suite(config: SuiteConfig) -> None:
    """Run every part and write one report."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("this suite measures a GPU and there is none; the other benchmarks run on CPUs")
    sections = [f"## {title}\n\n{part(config)}" for title, part in PARTS.items()]
    path = write_report("suite", title="What only a GPU shows", body="\n\n".join(sections))
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _speed(config: SuiteConfig) -> str:
    memory = _memory_speed(config)
    with tempfile.TemporaryDirectory() as folder:
        result = _train(config, folder, epochs=config.short_epochs, notest=True, noplots=True, nosave=True)
    loader = result.images_per_second
    rows = [
        ["from memory", memory, ""],
        ["through the loader", loader, f"{max(0.0, 1 - loader / memory):.0%} of the time waits for pictures"],
    ]
    return table(["yolov5s training", "images/s", ""], rows)


def _memory_speed(config: SuiteConfig) -> float:
    """Images per second of the whole step, always on the same batch."""
    model, loss = _model_and_loss(config)
    optimizer = build_optimizer("sgd", model, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    shape = (config.batch_size, 3, config.img_size, config.img_size)
    images = torch.rand(shape, device=config.device).contiguous(memory_format=torch.channels_last)
    targets = _random_targets(config.batch_size)
    start = 0.0
    for step in range(config.steps + 10):
        if step == 10:  # warmed up
            _wait()
            start = time.perf_counter()
        with torch.autocast(config.device, dtype=torch.bfloat16):
            heads = model(images)
        loss(heads, targets).total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    _wait()
    return config.batch_size * config.steps / (time.perf_counter() - start)


def _precisions(config: SuiteConfig) -> str:
    """Return the loss of the same weights and images in three precisions."""
    model, loss = _model_and_loss(config)
    images = torch.rand(8, 3, config.img_size, config.img_size, device=config.device)
    targets = _random_targets(8)
    values = {}
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        with torch.autocast(config.device, dtype=dtype, enabled=dtype is not None):
            heads = model(images)
        values[name] = loss(heads, targets).total.item()
    rows = [[name, f"{value:.4f}", f"{value / values['float32'] - 1:+.2%}"] for name, value in values.items()]
    return table(["precision", "loss", "against float32"], rows)


def _distributed(config: SuiteConfig) -> str:
    """Return a short run of one process per GPU under torchrun and nccl."""
    count = torch.cuda.device_count() or 1
    backend = "nccl" if config.device == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        command += [
            "train.py",
            "--cfg",
            "yolov5n.yaml",
            "--img-size",
            "320",
            "--epochs",
            "3",
            "--sync-bn",
            "--noplots",
        ]
        command += ["--batch-size", str(32 * count), "--project", folder, "--workers", str(config.workers)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    outcome = "finished" if done.returncode == 0 else f"failed: {done.stderr.strip().splitlines()[-1:]}"
    return f"{count} process(es), {backend}, SyncBN, {min(3, config.epochs)} epochs: {outcome}"


def _longer_training(config: SuiteConfig) -> str:
    with tempfile.TemporaryDirectory() as folder:
        result = _train(config, folder, epochs=config.epochs, weights=config.weights)
    scores = result.evaluation.headline
    start = config.weights or "scratch"
    rows = [[start, config.epochs, f"{scores['AP50']:.3f}", f"{scores['AP']:.3f}", f"{result.seconds / 60:.1f}"]]
    return table(["yolov5s on BCCD from", "epochs", "val mAP50", "val mAP", "minutes"], rows)


def _train(config: SuiteConfig, folder: str, *, epochs: int, **settings: object) -> TrainResult:
    given = {"cfg": "" if settings.get("weights") else "yolov5s.yaml", **settings}
    train_config = TrainConfig(
        data=str(ROOT / "data/bccd.yaml"),
        img_size=(config.img_size,),
        batch_size=config.batch_size,
        nominal_batch=config.batch_size,
        epochs=epochs,
        workers=config.workers,
        device="cpu" if config.device == "cpu" else "",
        cache_images=True,
        project=folder,
        **given,  # type: ignore[arg-type]
    )
    result = run_training(train_config)
    assert result is not None
    return result


def _model_and_loss(config: SuiteConfig) -> tuple[Detector, DetectionLoss]:
    torch.manual_seed(0)
    model = build_model(ModelSpec.from_yaml("yolov5s.yaml", num_classes=80))
    model = model.to(device=config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    gains = LossGains.from_hyp(Hyp(), num_classes=80, num_levels=3, img_size=config.img_size)
    return model.train(), DetectionLoss(gains=gains, anchors=model.anchors, strides=model.strides)


def _random_targets(batch: int) -> Tensor:
    """Eight boxes per image."""
    rows = torch.rand(batch * 8, 6)
    rows[:, 0] = torch.arange(batch).repeat_interleave(8)
    rows[:, 1] = torch.randint(0, 80, (batch * 8,))
    rows[:, 4:] = rows[:, 4:] * 0.3 + 0.02
    return rows


def _wait() -> None:
    """GPU work is only queued; let it end before looking at the clock."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


PARTS: dict[str, Callable[[SuiteConfig], str]] = {
    "Training speed": _speed,
    "Precisions": _precisions,
    "Distributed": _distributed,
    "A longer training": _longer_training,
}


if __name__ == "__main__":
    run_script(run_suite, SuiteConfig)
