"""Ours against torch-pruning at the same MACs, on the same data, with the same number of epochs.

Every way starts from COCO weights, trains, prunes to the share of MACs and fine-tunes, with as many epochs in all.
Ours trains with train_sparsity.py. torch-pruning trains with the regulariser of its pruner for batch-norm scales, and
densely for its pruner by magnitude. Fine-tuning is the same for all, without a teacher.

pip install torch-pruning==1.6.1
python -m benchmarks.pruning_peer --weights yolov5s_coco.pt
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.pruning_bccd import PruningBenchmark, Row, row_of, settings_of, sparsity_of
from benchmarks.pruning_speed import import_torch_pruning
from benchmarks.report import table, write_report
from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import CHECKPOINT_NAME, run_pruning
from commands.prune_config import PruneConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from models.blocks.conv import Conv
from models.complexity import count_macs
from models.detector import Detector, build_model
from models.load import load_model
from utils.config.cli import run_script
from utils.errors import PruningError
from utils.storage.checkpoint import Checkpoint, save_checkpoint

_BISECTIONS = 12


@dataclass(frozen=True, kw_only=True)
class PeerBenchmark(PruningBenchmark):
    """Compare at shares of the MACs that stay."""

    shares: tuple[float, ...] = (0.5, 0.25)
    variants: tuple[str, ...] = ("bn",)
    label: str = "peer"
    distill: float = 0.0
    peer_reg: float = 1e-3  # strength of torch-pruning's regulariser, whose own default is 1e-5


def measure(config: PeerBenchmark) -> None:
    """Run what is missing, evaluate everything, write the report."""
    peer = import_torch_pruning()
    rows: list[Row] = []
    for seed in config.seeds:
        starts = _starts(config, seed, peer)
        rows += [row_of(name, seed, "trained", path, config) for name, path in starts.items()]
        for share in config.shares:
            for name, prune in _ways(config, seed, share, starts, peer).items():
                folder = Path(config.project) / f"{name.replace(' ', '_')}_{round(100 * share)}_seed{seed}"
                small = folder / CHECKPOINT_NAME
                if not small.exists():
                    prune(folder)
                tuned = train_stage(_tuning(config, folder, seed=seed), run_finetuning)
                stage = f"{share:.0%} of MACs, "
                rows.append(row_of(name, seed, stage + "pruned", small, config))
                rows.append(row_of(name, seed, stage + "fine-tuned", tuned / "weights/best.pt", config))
    path = write_report(
        "pruning_peer",
        title=f"yolov5s on BCCD, {config.img_size} px: ours against torch-pruning at equal MACs",
        body=_table(rows),
        facts={
            "torch-pruning": version("torch-pruning"),
            "strength of its regulariser": config.peer_reg,
            "epochs before pruning, in all": f"{config.sparse_epochs}, {config.dense_epochs}",
            "sparse training": json.dumps(sparsity_of(config)),
        },
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _tuning(config: PeerBenchmark, pruned: Path, *, seed: int) -> FinetuneConfig:
    """Fine-tuning of what lies in a folder, the same for every way."""
    settings = settings_of(
        config,
        FinetuneConfig,
        seed,
        f"{pruned.name}_finetuned",
        str(pruned / CHECKPOINT_NAME),
        epochs=config.dense_epochs - config.sparse_epochs,
        scale_rate=config.scale_rate,
    )
    assert isinstance(settings, FinetuneConfig)
    return settings


def _starts(config: PeerBenchmark, seed: int, peer: Any) -> dict[str, Path]:
    """Return what each way prunes, trained for `sparse_epochs`."""
    values = {"epochs": config.sparse_epochs, "close_mosaic": 0}
    sparse = settings_of(
        config,
        SparsityConfig,
        seed,
        "bn_sparse_tied",
        config.weights,
        **{**sparsity_of(config), **values},
        shortcuts="tied",
    )
    dense = settings_of(config, TrainConfig, seed, "dense_short", config.weights, **values)
    regularised = settings_of(config, TrainConfig, seed, "peer_regularised", config.weights, **values)

    def run_regularised(settings: TrainConfig) -> TrainResult | None:
        return run_training(
            settings,
            hooks=lambda network, _, __: [PeerRegulariser(peer, network.model, config.peer_reg, config.img_size)],
        )

    return {
        "ours": train_stage(sparse, run_sparsity_training) / "weights/last.pt",
        "torch-pruning BN scale": train_stage(regularised, run_regularised) / "weights/last.pt",
        "torch-pruning magnitude": train_stage(dense, run_training) / "weights/last.pt",
    }


class PeerRegulariser(Hook):
    """torch-pruning's sparsity training, at the seam where it belongs."""

    def __init__(self, peer: Any, model: nn.Module, reg: float, img_size: int) -> None:
        assert isinstance(model, Detector)
        self.reg = reg
        self.pruner = peer.pruner.BNScalePruner(
            model,
            torch.zeros(1, 3, img_size, img_size),
            importance=peer.importance.BNScaleImportance(),
            ignored_layers=list(model.head.m),
        )

    def gradients_ready(self, trainer: Trainer) -> None:
        """Let it add its term."""
        self.pruner.regularize(trainer.model, reg=self.reg)


def _ways(
    config: PeerBenchmark, seed: int, share: float, starts: dict[str, Path], peer: Any
) -> dict[str, Callable[[Path], None]]:
    """How each way prunes into a folder."""
    importance = peer.importance

    def theirs(start: Path, make: Callable[[], Any]) -> Callable[[Path], None]:
        return lambda folder: prune_with_peer(start, folder, share, peer=peer, make=make, img_size=config.img_size)

    return {
        "ours": lambda folder: _prune_with_ours(starts["ours"], folder, share, config=config),
        "torch-pruning BN scale": theirs(starts["torch-pruning BN scale"], importance.BNScaleImportance),
        "torch-pruning magnitude": theirs(
            starts["torch-pruning magnitude"], lambda: importance.MagnitudeImportance(p=2)
        ),
    }


def _prune_with_ours(start: Path, folder: Path, share: float, *, config: PeerBenchmark) -> None:
    run_pruning(
        PruneConfig(
            weights=str(start),
            target=f"macs={100 * share:g}%",
            shortcuts="tied",
            round="none",
            img_size=config.img_size,
            project=str(folder.parent),
            name=folder.name,
            exist_ok=True,
        )
    )


def prune_with_peer(
    start: Path,
    folder: Path,
    share: float,
    *,
    peer: Any,
    make: Callable[[], Any],
    img_size: int,
    round_to: int | None = None,
) -> None:
    """Cut by the least pruning ratio of torch-pruning that reaches the share of MACs, found by bisection.

    Args:
        start: Checkpoint to cut.
        folder: Where the small one is written.
        share: MACs that may stay, above 0 and up to 1.
        peer: The package torch_pruning.
        make: Function that makes its importance.
        img_size: Side of the image that MACs are counted for.
        round_to: Number that widths are to be a multiple of.

    Raises:
        PruningError: No ratio reaches the share.
    """
    loaded = load_model(start)
    chw = (3, img_size, img_size)
    goal, low, high = share * count_macs(loaded.model, chw), 0.0, 1.0
    best: Detector | None = None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        model = copy.deepcopy(loaded.model)
        peer.pruner.MetaPruner(
            model,
            torch.zeros(1, *chw),
            importance=make(),
            global_pruning=True,
            pruning_ratio=ratio,
            ignored_layers=list(model.head.m),
            round_to=round_to,
        ).step()
        if count_macs(model, chw) <= goal:
            best, high = model, ratio
        else:
            low = ratio
    if best is None:
        raise PruningError(f"torch-pruning does not reach {share:.1%} of the MACs; ask for a larger share")
    small = _as_described(best, loaded.model)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(
        Checkpoint(spec=small.spec.to_dict(), names=loaded.names, weights=small.state_dict()),
        folder / CHECKPOINT_NAME,
    )


def _as_described(pruned: Detector, dense: Detector) -> Detector:
    """Return what torch-pruning changed in place, built anew from a description of its widths."""
    widths = {name: block.conv.out_channels for name, block in pruned.named_modules() if isinstance(block, Conv)}
    model = build_model(replace(dense.spec, widths=widths))
    model.load_state_dict(pruned.state_dict())
    return model.eval()


def _table(rows: list[Row]) -> str:
    header = ["way", "seed", "stage", "val mAP50", "val mAP", "test mAP50", "test mAP", "MACs, G", "parameters, M"]
    return table(
        header,
        [
            [
                row.variant,
                row.seed,
                row.stage,
                *(f"{value:.3f}" for value in (*row.val, *row.test)),
                f"{row.size.macs / 1e9:.3f}",
                f"{row.size.parameters / 1e6:.2f}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    run_script(measure, PeerBenchmark)
