r"""What rounding of widths does to the speed on ncnn at equal MACs: one thread, side by side with the dense network.

python -m benchmarks.ncnn_rounding --weights runs/train_sparsity/exp/weights/last.pt
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.report import table, write_report
from commands.prune import CHECKPOINT_NAME, run_pruning
from commands.prune_config import PruneConfig
from deploy.artefact.runtime import DetectorRuntime
from deploy.formats import load_detector
from deploy.job import ExportJob
from deploy.ncnn.export import write_ncnn
from deploy.outputs.detector import DetectorSource
from deploy.settings import ExportSettings, RuntimeOptions
from deploy.verification.latency import measure_latencies
from models.detector import Detector
from models.load import load_model
from pruning.choices import Shortcuts
from pruning.surgery.report import NetworkSize
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class RoundingConfig:
    """Prune one sparse network to the same MACs with different roundings, and time each on ncnn."""

    weights: str  # a network trained sparse
    targets: tuple[str, ...] = ("macs=50%", "macs=35%", "macs=25%")
    roundings: tuple[str, ...] = ("none", "8", "16", "pow2")
    shortcuts: Shortcuts = "tied"
    img_size: int = 320
    rounds: int = 40


def measure(config: RoundingConfig) -> None:
    """Prune, export, time in turns, write the report."""
    torch.set_num_threads(1)
    image = torch.rand(1, 3, config.img_size, config.img_size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as scratch:
        networks = _networks(config, Path(scratch))
        runtimes = [_loaded(model, name, Path(scratch), config) for name, model in networks.items()]
        latencies = measure_latencies(runtimes, image, threads=1, runs=config.rounds)
    times = dict(zip(networks, latencies, strict=True))
    dense = times["dense"].fastest
    rows = []
    for name, model in networks.items():
        size, own = NetworkSize.of(model, (3, config.img_size, config.img_size)), times[name]
        numbers = [size.macs / 1e9, size.parameters / 1e6, own.fastest, own.median, dense / own.fastest]
        rows.append([name, *(f"{number:.2f}" for number in numbers)])
    header = ["network", "MACs, G", "parameters, M", "fastest, ms", "median, ms", "times faster than dense"]
    path = write_report(
        "ncnn_rounding",
        title=f"Rounding of widths and speed on ncnn, {config.img_size} px, fp32, one thread",
        body=table(header, rows),
        facts={"how": f"{config.rounds} calls of each, in turns; shortcuts {config.shortcuts}; no fine-tuning"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _networks(config: RoundingConfig, folder: Path) -> dict[str, Detector]:
    """Return the dense network, and the pruned ones by target and rounding."""
    networks = {"dense": load_model(config.weights).model}
    for target in config.targets:
        for rounding in config.roundings:
            name = f"{target} round {rounding}"
            run_pruning(
                PruneConfig(
                    weights=config.weights,
                    target=target,
                    round=rounding,
                    shortcuts=config.shortcuts,
                    img_size=config.img_size,
                    noplots=True,
                    project=str(folder),
                    name=name,
                )
            )
            networks[name] = load_model(folder / name / CHECKPOINT_NAME).model
    return networks


def _loaded(model: Detector, name: str, folder: Path, config: RoundingConfig) -> DetectorRuntime:
    """Return the network on ncnn, one thread."""
    path = folder / f"{name}_ncnn_model"
    settings = ExportSettings(image_hw=(config.img_size, config.img_size))
    names = [str(number) for number in range(model.spec.num_classes)]
    write_ncnn(ExportJob(source=DetectorSource(model=model, names=names), settings=settings), path)
    return load_detector(path, device=torch.device("cpu"), options=RuntimeOptions(threads=1))


if __name__ == "__main__":
    run_script(measure, RoundingConfig)
