r"""Dense, sparse, pruned, fine-tuned: the four ways to train sparse, on the bundled blood cells at 320 px.

The small network sees as many epochs in all (sparse and fine-tuning) as the dense one, unless --finetune-epochs gives
another number. Stages that are complete in the project folder are not run again.

python -m benchmarks.pruning_bccd --weights yolov5s_coco.pt
python -m benchmarks.pruning_bccd --weights yolov5s_coco.pt --variants tenfold faster --sparse-epochs 25 \
    --finetune-epochs 120
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import table, write_report
from benchmarks.scores import load, scores_on
from benchmarks.training_settings import training_settings
from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import CHECKPOINT_NAME, run_pruning
from commands.prune_config import PruneConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from pruning.surgery.report import NetworkSize
from utils.config.cli import run_script

DATA = "data/bccd.yaml"

# Per variant: how to train sparse, and how to cut.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "bn": ({"sparsity": "bn"}, {"percent": 0.65}),
    "residual": ({"sparsity": "residual"}, {"percent": 0.65, "drop_bottlenecks": ("all",)}),
    "kernel": ({"sparsity": "kernel", "sr": 1e-4}, {"percent": 0.65, "criterion": "kernel_l1"}),
    "mixed": ({"sparsity": "mixed", "src": 1e-4}, {"bn_percent": 0.65, "conv_percent": 0.5}),
    "tenfold": (
        {"sparsity": "bn", "shortcuts": "tied", "aim": 0.85},
        {"target": "params=10%", "shortcuts": "tied"},
    ),
    "fast": (
        {"sparsity": "bn", "shortcuts": "tied", "aim": 0.85},
        {"target": "macs=26%", "shortcuts": "tied", "round": "8"},
    ),
}
# Per variant: whose fine-tuned network is cut once more, and how. That network is also the teacher.
SECOND_CUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "faster": (
        "tenfold",
        {
            **{"criterion": "taylor", "cost_power": 0.5, "data": DATA, "batch_size": 16},
            **{"target": "macs=500M", "shortcuts": "tied", "round": "8", "min_channels": 8},
        },
    ),
}
# Settings of a stage that its report names, where it has them.
_TOLD = (
    *("epochs", "close_mosaic", "sparsity", "sr", "srb", "src", "aim", "scale_rate", "beta_ratio", "shortcuts"),
    *("percent", "target", "round", "criterion", "cost_power", "bn_percent", "conv_percent", "drop_bottlenecks"),
    *("min_channels", "distill"),
)


@dataclass(frozen=True, kw_only=True)
class PruningBenchmark:
    """Measure the whole line for each variant."""

    weights: str  # COCO weights to start from
    variants: tuple[str, ...] = ("bn", "residual", "kernel", "mixed")
    seeds: tuple[int, ...] = (0,)
    dense_epochs: int = 70
    sparse_epochs: int = 20
    finetune_epochs: int = 0  # 0 takes what the dense training has more than the sparse one
    sr: float = 0.005  # of bn, residual and mixed
    scale_rate: float = 20.0
    beta_ratio: float = 0.0
    distill: float = 1.0  # weight of the dense network's answers in fine-tuning
    img_size: int = 320
    batch_size: int = 16
    hyp: str = "data/hyp/cells.yaml"
    close_mosaic: int = 20
    project: str = "runs/benchmark/pruning"
    label: str = field(default="")  # of the report's file name


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network after a stage, measured on both held-out splits."""

    variant: str
    seed: int
    stage: str
    val: tuple[float, float]
    test: tuple[float, float]
    size: NetworkSize


def measure(config: PruningBenchmark) -> None:
    """Run what is missing, evaluate everything, write the report."""
    rows: list[Row] = []
    scans: list[list[object]] = []
    for seed in config.seeds:
        dense = train_stage(settings_of(config, TrainConfig, seed, "dense", config.weights), run_training)
        rows.append(row_of("", seed, "dense", dense / "weights/best.pt", config))
        for variant in config.variants:
            stages = _slim(config, variant, seed, teacher=dense / "weights/best.pt")
            rows += [row_of(variant, seed, stage, path, config) for stage, path in stages.items()]
            if "percent" in VARIANTS.get(variant, ({}, {}))[1]:
                scans.append([variant, seed, *_scan(config, variant, seed, stages["sparse"])])
    label = f"_{config.label}" if config.label else ""
    path = write_report(
        f"pruning_bccd{label}",
        title=f"{Path(config.weights).stem} on BCCD, {config.img_size} px: dense, sparse, pruned, fine-tuned",
        body="\n\n".join([_table(rows), *_scan_table(scans)]),
        facts={
            **{f"stage {name}": told for name, told in _settings_told(config).items()},
            "all trainings": f"batch {config.batch_size}, {Path(config.hyp).name}",
            "teacher": "the dense network; of a second cut the network before it",
            "mAP": "of best.pt for dense and fine-tuned, of last.pt for sparse, in float32",
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _scan_table(scans: list[list[object]]) -> list[str]:
    """Return a sentence and a table; nothing where nothing was scanned."""
    if not scans:
        return []
    header = ["variant", "seed", "recommended percent", "mAP sparse", "mAP cut"]
    return [
        "Right after cutting, at the percent that `prune.py --scan` recommends, on val:",
        table(header, scans),
    ]


def _settings_told(config: PruningBenchmark) -> dict[str, str]:
    """By stage, the settings it ran with, from its own folder: they may come from an earlier run."""
    told = {}
    for stage in ["dense", *_stages(config)]:
        values = yaml.safe_load((Path(config.project) / f"{stage}_seed{config.seeds[0]}/opt.yaml").read_text())
        chosen = {name: values[name] for name in _TOLD if values.get(name) not in (None, "", [], ())}
        told[stage] = json.dumps(chosen)
    return told


def _stages(config: PruningBenchmark) -> list[str]:
    """After the dense training, those that other variants start from included."""
    variants = [name for variant in config.variants for name in (*SECOND_CUTS.get(variant, ())[:1], variant)]
    stages = []
    for variant in dict.fromkeys(variants):
        first = [] if variant in SECOND_CUTS else ["sparse"]
        stages += [f"{variant}_{stage}" for stage in (*first, "pruned", "finetuned")]
    return stages


def sparsity_of(config: PruningBenchmark) -> dict[str, Any]:
    """Return the settings of sparse training that all variants share."""
    return {
        "sr": config.sr,
        "srb": config.sr,
        "scale_rate": config.scale_rate,
        "beta_ratio": config.beta_ratio,
        "aim": 0.65,
        "close_mosaic": 0,
        "notest": True,  # what is pruned is last.pt
    }


def _slim(config: PruningBenchmark, variant: str, seed: int, *, teacher: Path) -> dict[str, Path]:
    """Return the checkpoints after sparse training, pruning and fine-tuning."""
    if variant in SECOND_CUTS:
        first, cut = SECOND_CUTS[variant]
        teacher = _slim(config, first, seed, teacher=teacher)["fine-tuned"]
        return _cut_and_tune(config, variant, seed, teacher, {**cut, "hyp": config.hyp}, teacher=teacher)
    training, cut = VARIANTS[variant]
    values = sparsity_of(config)
    sparse = train_stage(
        settings_of(
            config,
            SparsityConfig,
            seed,
            f"{variant}_sparse",
            config.weights,
            **(values | training),
            epochs=config.sparse_epochs,
        ),
        run_sparsity_training,
    )
    last = sparse / "weights/last.pt"
    return {"sparse": last, **_cut_and_tune(config, variant, seed, last, cut, teacher=teacher)}


def _cut_and_tune(
    config: PruningBenchmark, variant: str, seed: int, weights: Path, cut: Mapping[str, Any], *, teacher: Path
) -> dict[str, Path]:
    """Return the checkpoints after pruning and fine-tuning."""
    pruned = Path(config.project) / f"{variant}_pruned_seed{seed}"
    if not (pruned / "result.json").exists():
        run_pruning(
            PruneConfig(
                weights=str(weights),
                img_size=config.img_size,
                project=str(pruned.parent),
                name=pruned.name,
                exist_ok=True,
                **cut,
            )
        )
    small = pruned / CHECKPOINT_NAME
    tuned = train_stage(
        settings_of(
            config,
            FinetuneConfig,
            seed,
            f"{variant}_finetuned",
            str(small),
            epochs=config.finetune_epochs or config.dense_epochs - config.sparse_epochs,
            teacher=str(teacher) if config.distill else "",
            distill=config.distill,
            scale_rate=config.scale_rate,
        ),
        run_finetuning,
    )
    return {"pruned": small, "fine-tuned": tuned / "weights/best.pt"}


def _scan(config: PruningBenchmark, variant: str, seed: int, sparse: Path) -> list[str]:
    """Return what a scan recommends, and mAP before and after that cut."""
    folder = Path(config.project) / f"{variant}_scan_seed{seed}"
    # Of channels alone: without its bottlenecks a network finds nothing before it is fine-tuned.
    cut = {name: value for name, value in VARIANTS[variant][1].items() if name not in ("percent", "drop_bottlenecks")}
    if not (folder / "result.json").exists():
        run_pruning(
            PruneConfig(
                weights=str(sparse),
                scan=True,
                data=DATA,
                img_size=config.img_size,
                project=str(folder.parent),
                name=folder.name,
                exist_ok=True,
                **cut,
            )
        )
    result = json.loads((folder / "result.json").read_text())
    return [f"{result['scan']['recommended']:.3f}"] + [f"{result[when]['AP']:.3f}" for when in ("before", "after")]


def settings_of(config: PruningBenchmark, kind: type[Any], seed: int, name: str, weights: str, **values: Any) -> Any:
    """Return the settings of one training of the benchmark; `kind` is their dataclass."""
    shared: dict[str, Any] = {
        "weights": weights,
        "hyp": config.hyp,
        "batch_size": config.batch_size,
        "nominal_batch": config.batch_size,
        "epochs": config.dense_epochs,
        "close_mosaic": config.close_mosaic,
        **values,
    }
    folder = Path(config.project) / f"{name}_seed{seed}"
    return kind(**training_settings(folder, data=DATA, img_size=config.img_size, seed=seed, **shared))


def row_of(variant: str, seed: int, stage: str, path: Path, config: PruningBenchmark) -> Row:
    """Measure a checkpoint on both held-out splits."""
    network, numbers = load(path), {}
    for split in ("val", "test"):
        metrics = scores_on(split, network=network, data=DATA, img_size=config.img_size).metrics
        numbers[split] = metrics.AP50, metrics.AP
    size = NetworkSize.of(network.model, (3, config.img_size, config.img_size))
    return Row(variant=variant, seed=seed, stage=stage, size=size, **numbers)


def _table(rows: list[Row]) -> str:
    dense = rows[0].size
    header = ["variant", "seed", "stage", "val mAP50", "val mAP", "test mAP50", "test mAP", "parameters, M"]
    header += ["MACs, G", "float32, MB", "times smaller"]
    lines = [
        [
            row.variant,
            row.seed,
            row.stage,
            *(f"{value:.3f}" for value in (*row.val, *row.test)),
            f"{row.size.parameters / 1e6:.2f}",
            f"{row.size.macs / 1e9:.2f}",
            f"{row.size.megabytes:.2f}",
            f"{dense.megabytes / row.size.megabytes:.2f}",
        ]
        for row in rows
    ]
    return table(header, lines)


if __name__ == "__main__":
    run_script(measure, PruningBenchmark)
