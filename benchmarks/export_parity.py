"""Raw heads of exported networks against the fused network: every architecture, dense and pruned, and weights.

python -m benchmarks.export_parity --weights dense.pt pruned.pt
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks.report import table, write_report
from commands.export import artefact_path
from commands.export_config import ExportConfig
from deploy.calibration import as_input
from deploy.formats import FORMATS, load_detector, resolve
from deploy.job import ExportJob
from deploy.outputs.detector import DetectorSource
from deploy.verification.agreement import HeadError
from models.detector import Detector, build_model
from models.load import load_model
from models.spec import MODELS_FOLDER, ModelSpec
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut
from utils.config.cli import run_script

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Export everything in float32 and compare heads on a real picture."""

    weights: tuple[str, ...] = ()  # trained networks, beside the architectures with random numbers
    formats: tuple[str, ...] = ("ncnn", "onnx", "openvino", "torchscript")
    architectures: tuple[str, ...] = tuple(sorted(path.stem for path in MODELS_FOLDER.glob("*.yaml")))
    picture: str = "data/bccd/images/test/BloodImage_00007.jpg"
    trained_size: int = 320  # image size of the trained networks; the others see three of their largest strides


def measure(config: ParityConfig) -> None:
    """Export, run, compare, write the report."""
    rows = []
    worst = 0.0
    for name, model, side in _networks(config):
        errors = [_error(model, side, format_name, config) for format_name in config.formats]
        worst = max(worst, *errors)
        rows.append([name, side, *(f"{error:.1e}" for error in errors)])
        sys.stdout.write(f"{rows[-1]}\n")
    path = write_report(
        "export_parity",
        title="Raw heads of exported networks, float32",
        body=table(["network", "px", *config.formats], rows),
        facts={
            "worst": f"{worst:.1e}",
            "error": "largest difference over the largest number of a head, worst head, on one real picture",
            "numbers": "random for networks without weights: noise statistics, scales in [.5, 1.5]",
            "pruned": "40 % of the channels, tied shortcuts, widths not rounded",
        },
    )
    sys.stdout.write(f"written to {path}\n")


def _networks(config: ParityConfig) -> Iterator[tuple[str, Detector, int]]:
    """Name, network and image size, one after another: the largest fill gigabytes."""
    for weights in config.weights:
        yield Path(weights).name, load_model(weights).model, config.trained_size
    for name in config.architectures:
        model = _lively(build_model(ModelSpec.from_yaml(f"{name}.yaml", num_classes=3)))
        side = 3 * model.max_stride
        yield name, model, side
        yield f"{name}, pruned", _pruned(model), side


def _lively(model: Detector) -> Detector:
    """Batch norms as training leaves them: otherwise wrong folding would not show."""
    generator = torch.Generator().manual_seed(0)
    side = 2 * model.max_stride
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
        model.train()(torch.rand(2, 3, side, side, generator=generator))
    return model.eval()


def _pruned(model: Detector) -> Detector:
    planner = Planner.of(model, PlanSettings(percent=0.4, shortcuts="tied", rounding=Rounding()))
    smaller = cut(planner.model, planner.graph, planner.allocate().dropped)
    assert isinstance(smaller, Detector)
    return smaller


def _error(model: Detector, side: int, name: str, config: ParityConfig) -> float:
    """Of the worst head."""
    names = tuple(str(number) for number in range(model.spec.num_classes))
    source = DetectorSource(model=model, names=names)
    image = as_input(config.picture, (side, side))
    with tempfile.TemporaryDirectory() as scratch:
        settings = ExportConfig(weights=f"{scratch}/network.pt", include=(name,), img_size=(side,))
        job = ExportJob(source=source, settings=settings.settings, special=settings.special)
        path = artefact_path(settings, name)
        resolve(FORMATS[name].write)(job, path)
        found = load_detector(path, device=CPU)(image)
    expected = source.runtime(CPU)(image)
    return max(HeadError.of(own, other).largest for own, other in zip(found, expected, strict=True))


if __name__ == "__main__":
    run_script(measure, ParityConfig)
