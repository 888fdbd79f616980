"""What a frame costs outside the network: reading the picture, letterbox, decoding, suppression. One thread.

python -m benchmarks.frame_overhead --weights best_ncnn_model
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import table, write_report
from deploy.artefact.runtime import DetectorRuntime
from deploy.formats import load_detector
from deploy.predictor import Predictor, PredictSettings
from deploy.settings import RuntimeOptions
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class OverheadConfig:
    """Detect in pictures, one at a time."""

    weights: tuple[str, ...]  # artefacts or checkpoints
    pictures: str = "data/bccd/images/test"
    img_size: int = 640
    count: int = 30  # pictures


class Timed:
    """A runtime that notes how long its calls take."""

    def __init__(self, runtime: DetectorRuntime) -> None:
        self._runtime = runtime
        self.seconds = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(self._runtime, name)

    def __call__(self, images: Tensor) -> list[Tensor]:
        start = time.perf_counter()
        heads = self._runtime(images)
        self.seconds += time.perf_counter() - start
        return heads


def measure(config: OverheadConfig) -> None:
    """Detect, sum up, write the report."""
    torch.set_num_threads(1)
    pictures = sorted(Path(config.pictures).glob("*.jpg"))[: config.count]
    rows = [[Path(weights).name, *_times(weights, pictures, config)] for weights in config.weights]
    header = ["artefact", "network, ms", "all else, ms", "share of the frame", "of it: read", "letterbox"]
    path = write_report(
        "frame_overhead",
        title=f"A frame outside of the network, {config.img_size} px, one thread",
        body=table([*header, "decode and suppression"], rows),
        facts={"pictures": f"{len(pictures)} of {config.pictures}, medians", "thresholds": "confidence .25, IoU .45"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _times(weights: str, pictures: list[Path], config: OverheadConfig) -> list[str]:
    """Medians over the pictures, in milliseconds; the share of what is not the network."""
    runtime = Timed(load_detector(weights, device=torch.device("cpu"), options=RuntimeOptions(threads=1)))
    predictor = Predictor(runtime, settings=PredictSettings(img_size=config.img_size))  # type: ignore[arg-type]
    predictor.warm_up()
    network, read, letterbox, after = [], [], [], []
    for picture in pictures:
        runtime.seconds = 0.0
        predictor(picture)
        stages = predictor.seconds
        network.append(runtime.seconds)
        read.append(stages["read"])
        letterbox.append(stages["preprocess"])
        after.append(stages["inference"] - runtime.seconds + stages["nms"])
    parts = [1000 * statistics.median(values) for values in (network, read, letterbox, after)]
    outside = sum(parts[1:])
    shown = [f"{parts[0]:.1f}", f"{outside:.1f}", f"{outside / (outside + parts[0]):.1%}"]
    return [*shown, *(f"{part:.2f}" for part in parts[1:])]


if __name__ == "__main__":
    run_script(measure, OverheadConfig)
