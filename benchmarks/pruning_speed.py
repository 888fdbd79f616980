"""Time from a network to its pruned form: channel graph, plan and surgery, against torch-pruning, side by side.

pip install torch-pruning==1.6.1
python -m benchmarks.pruning_speed
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from benchmarks.report import table, write_report
from models.complexity import count_parameters
from models.detector import Detector, build_model
from models.spec import ModelSpec
from pruning.selection.planner import Planner
from pruning.selection.rounding import Rounding
from pruning.selection.settings import PlanSettings
from pruning.surgery.cut import cut
from utils.config.cli import run_script
from utils.errors import ConfigError

# Side of the image that torch-pruning runs the network on to trace it: small is fastest for it.
_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Prune half of the channels of a large network, by ours and by torch-pruning, in turns, on one core."""

    cfg: str = "yolov5x.yaml"
    rounds: int = 3  # each runs both
    percent: float = 0.5
    peer_sizes: tuple[int, ...] = (_SIZE, 640)  # of the image that torch-pruning runs the network on


def measure(config: SpeedConfig) -> None:
    """Time both in turns and write the report; the first round of each counts too and is given apart."""
    peer = import_torch_pruning()
    torch.set_num_threads(1)
    model = build_model(ModelSpec.from_yaml(config.cfg, num_classes=80)).eval()
    scale_randomly_(model)
    ways: dict[str, Callable[[Detector], Detector]] = {
        "ours: ChannelGraph, Planner, cut": lambda network: _ours(network, config),
    }
    for size in config.peer_sizes:
        ways[f"torch-pruning {version('torch-pruning')}: BNScalePruner, traced at {size} px"] = partial(
            _theirs, config=config, peer=peer, size=size
        )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    parameters: dict[str, int] = {}
    for _ in range(config.rounds):
        for name, prune in ways.items():
            network = copy.deepcopy(model)
            started = time.perf_counter()
            pruned = prune(network)
            seconds[name].append(time.perf_counter() - started)
            parameters[name] = count_parameters(pruned)
    rows = [
        [name, f"{times[0]:.2f}", f"{statistics.median(times[1:] or times):.2f}", f"{parameters[name] / 1e6:.2f}"]
        for name, times in seconds.items()
    ]
    ours, *theirs = (statistics.median(times[1:] or times) for times in seconds.values())
    first, *their_first = (times[0] for times in seconds.values())
    path = write_report(
        "pruning_speed",
        title=f"From {config.cfg} to its pruned form",
        body=table(["way", "first time, s", "median of the others, s", "parameters left, M"], rows),
        facts={
            "ratio": f"torch-pruning takes {_times(theirs, ours)} times as long; the first time in a process, "
            f"{_times(their_first, first)} times",
            "network": f"{config.cfg}, 80 classes, {count_parameters(model) / 1e6:.1f} M parameters, random weights",
            "how": f"one thread, in turns, {config.rounds} rounds; ours includes making the new network with its "
            "spec and carrying constants; torch-pruning works in place, so the copy it needs is not counted",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def scale_randomly_(model: Detector) -> None:
    """Give batch norms the scales that make a global threshold mean something."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.01, 1.0, generator=generator)


def _ours(model: Detector, config: SpeedConfig) -> Detector:
    planner = Planner.of(
        model, PlanSettings(percent=config.percent, shortcuts="tied", rounding=Rounding.parse("pow2"))
    )
    allocation = planner.allocate()
    planner.plan(allocation)
    pruned = cut(planner.model, planner.graph, allocation.dropped)
    assert isinstance(pruned, Detector)
    return pruned


def _theirs(model: Detector, config: SpeedConfig, peer: Any, size: int) -> Detector:
    importance = peer.importance.BNScaleImportance()
    return prune_with_torch_pruning(model, peer, ratio=config.percent, importance=importance, size=size)


def _times(theirs: list[float], ours: float) -> str:
    return " and ".join(f"{seconds / ours:.1f}" for seconds in theirs)


def prune_with_torch_pruning(
    model: Detector, peer: Any, *, ratio: float, importance: Any, is_global: bool = True, size: int = _SIZE
) -> Detector:
    """Prune in place with torch-pruning's pruner for batch-norm scales; the head's outputs stay."""
    pruner = peer.pruner.BNScalePruner(
        model,
        torch.zeros(1, 3, size, size),
        importance=importance,
        global_pruning=is_global,
        pruning_ratio=ratio,
        ignored_layers=list(model.head.m),
    )
    pruner.step()
    return model


def import_torch_pruning() -> Any:
    """Return the package, which this project does not require.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError("torch-pruning is not installed; pip install torch-pruning==1.6.1") from error
    return torch_pruning


if __name__ == "__main__":
    run_script(measure, SpeedConfig)
