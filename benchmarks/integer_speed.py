"""How much longer integers take than floats: a LeNet5 beside torch, or a detector beside ncnn, side by side.

python -m benchmarks.integer_speed
python -m benchmarks.integer_speed --detector best.pt --img-size 320
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.report import table, write_report
from benchmarks.scores import load
from deploy.formats import FORMATS, load_runtime, resolve
from deploy.job import ExportJob
from deploy.outputs.detector import DetectorSource
from deploy.settings import ExportSettings, RuntimeOptions
from deploy.verification.latency import time_in_turns
from models.classifiers import build_classifier
from models.detector import Detector
from quantization.network import quantize
from quantization.ranges.config import QuantConfig
from utils.config.cli import run_script

_IMAGE = (1, 28, 28)


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Time both in turns."""

    detector: str = ""  # checkpoint of a detector, timed beside its export to ncnn in fp32; by default a LeNet5
    img_size: int = 320  # side of the detector's image
    batches: tuple[int, ...] = (1, 64)  # pictures per call of the LeNet5
    bits: tuple[int, ...] = (8, 16)  # of weights and values
    runs: int = 200  # timed calls of each


@torch.no_grad()
def measure(config: SpeedConfig) -> None:
    """Write the report."""
    torch.set_num_threads(1)
    rows = _detector_rows(config) if config.detector else _lenet_rows(config)
    beside = "ncnn in fp32" if config.detector else "float32"
    name = Path(config.detector).stem if config.detector else "LeNet5"
    weights = "its own" if config.detector else "random"
    path = write_report(
        f"integer_speed{'_detector' if config.detector else ''}",
        title=f"{name} in integers against {beside}",
        body=table(["bits", "batch", f"fastest, times {beside}", f"median, times {beside}"], rows),
        facts={"how": f"one thread, {config.runs} calls of each in turns, from floats to floats; {weights} weights"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _lenet_rows(config: SpeedConfig) -> list[list[object]]:
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
            rows.append(_row(bits, batch, partial(model, images), partial(network, images), runs=config.runs))
    return rows


def _detector_rows(config: SpeedConfig) -> list[list[object]]:
    loaded, size = load(config.detector), (config.img_size, config.img_size)
    assert isinstance(loaded.model, Detector)
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        source = DetectorSource(model=loaded.model, names=tuple(loaded.names))
        path = Path(scratch, f"floats{FORMATS['ncnn'].suffix}")
        resolve(FORMATS["ncnn"].write)(ExportJob(source=source, settings=ExportSettings(image_hw=size)), path)
        floats = load_runtime(path, device=torch.device("cpu"), options=RuntimeOptions(threads=1))
        rows = []
        for bits in config.bits:
            settings = QuantConfig(weight_bits=bits, activation_bits=bits)
            network = quantize(loaded.model, [image], config=settings, image_shape=(3, *size))
            network.mode = "integer"
            rows.append(_row(bits, 1, partial(floats, image), partial(network, image), runs=config.runs))
    return rows


def _row(
    bits: int, batch: int, floats: Callable[[], object], integers: Callable[[], object], *, runs: int
) -> list[object]:
    was, now = time_in_turns([floats, integers], threads=1, runs=runs)
    return [bits, batch, f"{now.fastest / was.fastest:.2f}", f"{now.median / was.median:.2f}"]


if __name__ == "__main__":
    run_script(measure, SpeedConfig)
