"""How much longer a LeNet5 takes in integers than in float32, side by side.

python -m benchmarks.integer_speed
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.report import table, write_report
from deploy.verification.latency import time_in_turns
from models.classifiers import build_classifier
from quantization.network import quantize
from quantization.ranges.config import QuantConfig
from utils.config.cli import run_script

_IMAGE = (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Time both in turns."""

    batches: tuple[int, ...] = (1, 64)  # pictures per call
    bits: tuple[int, ...] = (8, 16)  # of weights and values
    runs: int = 200  # timed calls of each


@torch.no_grad()
def measure(config: SpeedConfig) -> None:
    """Write the report."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_classifier("lenet5", in_channels=_IMAGE[0]).eval()
    rows = []
    for bits in config.bits:
        settings = QuantConfig(weight_bits=bits, activation_bits=bits)
        network = quantize(model, [torch.rand(64, *_IMAGE, generator=generator)], config=settings, image_shape=_IMAGE)
        network.mode = "integer"
        for batch in config.batches:
            images = torch.rand(batch, *_IMAGE, generator=generator)
            floats, integers = time_in_turns(
                [partial(model, images), partial(network, images)], threads=1, runs=config.runs
            )
            ratios = (integers.fastest / floats.fastest, integers.median / floats.median)
            rows.append([bits, batch, *(f"{ratio:.2f}" for ratio in ratios)])
    path = write_report(
        "integer_speed",
        title="LeNet5 in integers against float32",
        body=table(["bits", "batch", "fastest, times float", "median, times float"], rows),
        facts={"how": f"one thread, {config.runs} calls of each in turns, from floats to floats; random weights"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


if __name__ == "__main__":
    run_script(measure, SpeedConfig)
