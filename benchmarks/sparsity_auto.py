r"""`--sr auto` at several targets and data sets, no setting changed: what is at zero, and what the cut costs.

python -m benchmarks.sparsity_auto --weights yolov5s_coco.pt --data data/bccd.yaml aquarium.yaml
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.report import table, write_report
from benchmarks.scores import load
from benchmarks.training_settings import training_settings
from commands.prune import run_pruning
from commands.prune_config import PruneConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from pruning.channels.graph import ChannelGraph
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class AutoBenchmark:
    """Train dense, then sparse for each target, and cut; complete stages in the project folder are not run again."""

    weights: str  # COCO weights to start from
    data: tuple[str, ...] = ("data/bccd.yaml",)
    targets: tuple[str, ...] = ("speedup=1.333", "speedup=2", "speedup=4")
    dense_epochs: int = 60
    sparse_epochs: int = 20
    img_size: int = 320
    seed: int = 0
    project: str = "runs/benchmark/sparsity_auto"
    label: str = ""  # of the report's file name


def measure(config: AutoBenchmark) -> None:
    """Run what is missing, count, write the report."""
    rows = [row for data in config.data for row in _of_data(config, data)]
    header = ["data", "target", "mAP dense", "mAP sparse", "mAP cut", "chosen below 1 %", "all between 1 and 10 %"]
    path = write_report(
        f"sparsity_auto{'_' if config.label else ''}{config.label}",
        title=f"--sr auto, {Path(config.weights).stem}, {config.img_size} px: what the cut costs",
        body=table(header, rows),
        facts={
            "epochs": f"{config.dense_epochs} dense, {config.sparse_epochs} sparse",
            "chosen below 1 %": "share of the chosen whose scale is below 1 % of the median of the kept",
            "mAP": "on val: dense of its best.pt, sparse and cut of last.pt, before any fine-tuning",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _of_data(config: AutoBenchmark, data: str) -> list[list[object]]:
    """Return a row for each target."""
    project = Path(config.project) / f"{Path(data).resolve().parent.name}_{Path(data).stem}"
    dense = train_stage(TrainConfig(**_shared(config, data, config.weights, project / "dense")), run_training)
    score = json.loads((dense / "result.json").read_text())["metrics"]["AP"]
    best = str(dense / "weights/best.pt")
    rows: list[list[object]] = []
    for target in config.targets:
        name = target.replace("=", "_")
        values = _shared(config, data, best, project / name) | {"epochs": config.sparse_epochs}
        sparse = train_stage(
            SparsityConfig(**values, sr="auto", target=target, shortcuts="tied"), run_sparsity_training
        )
        rows.append([project.name, target, f"{score:.3f}", *_cut(config, data, sparse), *_counted(sparse)])
    return rows


def _shared(config: AutoBenchmark, data: str, weights: str, folder: Path) -> dict[str, Any]:
    """Return the settings that all trainings share."""
    own: dict[str, Any] = {"weights": weights, "epochs": config.dense_epochs}
    return training_settings(folder, data=data, img_size=config.img_size, seed=config.seed, **own)


def _cut(config: AutoBenchmark, data: str, sparse: Path) -> list[str]:
    """Return mAP before and after the cut."""
    folder = sparse.parent / f"{sparse.name}_cut"
    if not (folder / "result.json").exists():
        run_pruning(
            PruneConfig(
                weights=str(sparse / "weights/last.pt"),
                plan=str(sparse / PLAN_NAME),
                data=data,
                img_size=config.img_size,
                project=str(folder.parent),
                name=folder.name,
                exist_ok=True,
            )
        )
    result = json.loads((folder / "result.json").read_text())
    return [f"{result[when]['AP']:.3f}" for when in ("before", "after")]


def _counted(sparse: Path) -> list[str]:
    """Return shares of channels, by the scales of the checkpoint and the plan alone."""
    model = load(sparse / "weights/last.pt").model
    graph = ChannelGraph.of(model)
    chosen = PruningPlan.load(sparse / PLAN_NAME).dropped_ids(model, graph)
    scales, is_chosen = [], []
    for layer in graph.layers.values():
        if layer.is_norm:
            norm = model.get_submodule(layer.name)
            assert isinstance(norm, _BatchNorm)
            scales.append(norm.weight.detach().abs().numpy())
            is_chosen.append(np.isin(layer.output_ids, chosen))
    all_scales, mask = np.concatenate(scales), np.concatenate(is_chosen)
    relative = all_scales / np.median(all_scales[~mask])
    below, between = (relative[mask] < 0.01).mean(), ((relative >= 0.01) & (relative < 0.1)).mean()
    return [f"{below:.1%}", f"{between:.1%}"]


if __name__ == "__main__":
    run_script(measure, AutoBenchmark)
