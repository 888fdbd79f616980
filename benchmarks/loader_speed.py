"""How many times faster one core makes pictures than one core consumes them.

    python -m benchmarks.loader_speed

The loader runs alone, in one process, mosaic on, pictures cached; yolov5s trains from memory on all threads,
and its images per second are divided by their number.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import torch

from benchmarks.report import table, write_report
from engine.losses.detection import DetectionLoss, LossGains
from models.detector import build_model
from models.spec import ModelSpec
from utils.config.cli import run_script
from utils.config.hyp import Hyp
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.datasets.loading.batch import Batch
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.loading.loader import Loader, build_loader
from utils.device import amp_dtype


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """Compare the loader's speed with the model's."""

    img_size: int = 320
    batch_size: int = 16
    steps: int = 12  # training steps timed
    epochs: int = 5  # passes of the loader timed


def measure(config: LoaderConfig) -> None:
    """Time both and write the report."""
    index = build_label_index(load_data_config("data/bccd.yaml"), "train")
    dataset = DetectionDataset(index, img_size=config.img_size, hyp=Hyp(), augment=True, cache_images=True)
    loader = build_loader(dataset, batch_size=config.batch_size, workers=0, shuffle=True)
    threads = torch.get_num_threads()
    loading = _loader_speed(loader, config.epochs)
    training = _training_speed(next(iter(loader)), config)
    ratio = loading / (training / threads)
    rows = [
        ["loader alone, images/s on one core", f"{loading:.0f}"],
        [f"yolov5s training from memory, images/s on {threads} cores", f"{training:.1f}"],
        ["loader per core against model per core", f"{ratio:.1f} times"],
    ]
    path = write_report(
        "loader_speed",
        title="The data loader against what the model consumes",
        body=table(["what", "measured"], rows),
        facts={"size and batch": f"{config.img_size} px, {config.batch_size}; mosaic 1.0, pictures cached"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _loader_speed(loader: Loader, epochs: int) -> float:
    best = 0.0
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        images = sum(len(batch) for batch in loader)
        best = max(best, images / (time.perf_counter() - start))
    return best


def _training_speed(batch: Batch, config: LoaderConfig) -> float:
    model = build_model(ModelSpec.from_yaml("yolov5s.yaml", num_classes=3))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    gains = LossGains.from_hyp(Hyp(), num_classes=3, num_levels=3, img_size=config.img_size)
    loss = DetectionLoss(gains=gains, anchors=model.anchors, strides=model.strides)
    dtype = amp_dtype(torch.device("cpu"))
    fastest = float("inf")
    for _ in range(config.steps):
        start = time.perf_counter()
        images = batch.normalised().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            heads = model(images)
        loss(heads, batch.targets).total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        fastest = min(fastest, time.perf_counter() - start)
    return len(batch) / fastest


if __name__ == "__main__":
    run_script(measure, LoaderConfig)
