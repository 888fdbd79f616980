"""All stages in one run: train sparse, prune, fine-tune, and that several times towards a target."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.config import TrainConfig
from engine.distributed import this_process
from engine.run_result import TrainResult
from models.load import load_model
from pruning.finetune import FinetuneConfig, run_finetuning
from pruning.pipeline import CHECKPOINT_NAME, run_pruning
from pruning.prune_config import PruneConfig, parse_target
from pruning.report import NetworkSize
from pruning.rounding import Direction, Rounding
from pruning.sparse_training import SparsityConfig, run_sparsity_training
from utils.errors import ConfigError
from utils.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

_Training = TypeVar("_Training", bound=TrainConfig)
_Fields = TypeVar("_Fields")


@dataclass(frozen=True, kw_only=True)
class SlimConfig(SparsityConfig):
    """Train sparse, prune and fine-tune, once or in rounds; --epochs is for each sparse training."""

    rounds: int = 1  # times the three stages are run; each cuts a part of what is to go
    finetune_epochs: int = 100  # passes over the training images in each fine-tuning
    percent: float | None = None  # share of channels that each round cuts; 0.5 by default
    target: str = ""  # what the last round must reach: macs=50%, params=700K, ...; rounds cut by equal factors
    round: str = "pow2"  # widths to keep: pow2, a number to be a multiple of, or none
    round_direction: Direction = "nearest"  # up, down or nearest
    min_channels: int = 1  # fewest channels of a layer
    distill: float = 0.0  # weight of a teacher's answers in fine-tuning; the teacher is the first sparse network
    teacher: str = ""  # another teacher for it
    project: str = "runs/slim"  # where run folders are made

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "finetune_epochs", "min_channels"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: expected at least 1")
        if self.evolve:
            raise ConfigError("--evolve is not for several stages; search hyper-parameters with train.py")
        Rounding.parse(self.round, direction=self.round_direction)
        if self.target:
            parse_target(self.target)
        if self.target and self.percent is not None:
            raise ConfigError("--percent and --target both say how much to cut; leave one out")


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One row of the table: a network after a stage.

    Attributes:
        stage: Such as "round1/finetune".
        weights: The checkpoint.
        AP50, AP: On val; None right after a cut.
        size: Of the network.
    """

    stage: str
    weights: Path
    AP50: float
    AP: float
    size: NetworkSize


def run_slimming(config: SlimConfig) -> list[StageResult]:
    """Run all stages; those that an earlier, killed run has finished are not run again under `resume`.

    Returns:
        A row per stage; empty on all but the first process.
    """
    folder = _folder(config)
    rows: list[StageResult] = []
    weights = config.weights
    goals = _goals(config)
    for number in range(1, config.rounds + 1):
        place = folder / f"round{number}"
        sparse = train_stage(_training(config, SparsityConfig, weights, place, "sparse"), run_sparsity_training)
        # last, not best: what is best by mAP may have been saved before the channels were at zero.
        sparse_weights = sparse / "weights/last.pt"
        pruned = _prune_stage(config, sparse_weights, place, target=goals and goals[number - 1])
        teacher = config.teacher or str(folder / "round1/sparse/weights/last.pt")
        finetuning = replace(
            _training(config, FinetuneConfig, str(pruned / CHECKPOINT_NAME), place, "finetune"),
            epochs=config.finetune_epochs,
            teacher=teacher if config.distill else "",
            distill=config.distill,
        )
        tuned = train_stage(finetuning, run_finetuning)
        weights = str(tuned / "weights/best.pt")
        rows += [_row(config, stage) for stage in (sparse, pruned, tuned)]
    if this_process().is_main:
        LOGGER.info("%s", slim_table(rows))
        RunFolder(path=folder).write_result({"stages": [_plain_row(row) for row in rows], "weights": weights})
        LOGGER.info("the small network: %s\nresults in %s", weights, folder)
    return rows


def train_stage(config: _Training, run: Callable[[_Training], TrainResult | None]) -> Path:
    """Run a training, or go on with a killed one, or do nothing where it is complete; returns its folder."""
    folder = Path(config.project) / config.name
    last = folder / "weights/last.pt"
    if (folder / "result.json").exists():
        LOGGER.info("%s is complete", folder)
    elif last.exists():
        run(replace(config, resume=str(last)))
    else:
        run(replace(config, exist_ok=True))
    return folder


def slim_table(rows: list[StageResult]) -> str:
    """A line per stage: mAP and size."""
    lines = [f"{'stage':<18} {'mAP50':>7} {'mAP':>7} {'parameters':>12} {'MACs G':>8} {'MB':>7}"]
    lines += [
        f"{row.stage:<18} {row.AP50:7.3f} {row.AP:7.3f} {row.size.parameters:12,d} {row.size.macs / 1e9:8.3f} "
        f"{row.size.megabytes:7.2f}"
        for row in rows
    ]
    return "\n".join(lines)


def _folder(config: SlimConfig) -> Path:
    if config.resume:
        folder = Path(config.resume)
        if not folder.is_dir():
            raise ConfigError(
                f"--resume {folder}: no such folder; give that of a slimming run, such as runs/slim/exp"
            )
        return folder
    made = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    made.write_config(config)
    LOGGER.info("run folder %s", made.path)
    return made.path


def _training(config: SlimConfig, kind: type[_Training], weights: str, project: Path, name: str) -> _Training:
    """The settings of one training stage: those that it shares with the whole run."""
    shared = {item.name for item in fields(kind)} & {item.name for item in fields(config)}
    values = {item: getattr(config, item) for item in shared}
    own = {"weights": weights, "cfg": "", "project": str(project), "name": name, "exist_ok": True, "resume": ""}
    return kind(**{**values, **own})


def _goals(config: SlimConfig) -> list[str]:
    """The target of each round, as shares of what the network then has; empty where rounds cut by percent."""
    if not config.target:
        return []
    target = parse_target(config.target)
    model = load_model(config.weights).model
    size = NetworkSize.of(model, (3, config.img_size[0], config.img_size[0]))
    now = size.macs if target.quantity == "macs" else size.parameters
    share = target.absolute(now) / now
    return [
        f"{target.quantity}={now * share ** (number / config.rounds):.0f}" for number in range(1, config.rounds + 1)
    ]


def _prune_stage(config: SlimConfig, weights: Path, place: Path, *, target: Any) -> Path:
    """Cut and measure, once."""
    folder = place / "prune"
    if (folder / "result.json").exists() or not this_process().is_main:
        return folder
    run_pruning(
        PruneConfig(
            weights=str(weights),
            percent=config.percent,
            target=target or "",
            shortcuts=config.shortcuts,
            round=config.round,
            round_direction=config.round_direction,
            min_channels=config.min_channels,
            data=config.data,
            img_size=config.img_size[-1],
            device=config.device,
            workers=config.workers,
            project=str(place),
            name="prune",
            exist_ok=True,
        )
    )
    return folder


def _row(config: SlimConfig, folder: Path) -> StageResult:
    result = json.loads((folder / "result.json").read_text())
    is_pruned = (folder / CHECKPOINT_NAME).exists()
    metrics = result["after"] if is_pruned else result["metrics"]
    weights = folder / (CHECKPOINT_NAME if is_pruned else "weights/best.pt")
    return StageResult(
        stage=f"{folder.parent.name}/{folder.name}",
        weights=weights,
        AP50=metrics["AP50"],
        AP=metrics["AP"],
        size=NetworkSize.of(load_model(weights).model, (3, config.img_size[0], config.img_size[0])),
    )


def _plain_row(row: StageResult) -> dict[str, Any]:
    return {
        "stage": row.stage,
        "weights": str(row.weights),
        "AP50": row.AP50,
        "AP": row.AP,
        "parameters": row.size.parameters,
        "macs": row.size.macs,
        "megabytes": row.size.megabytes,
    }
