"""The settings of slim.py, and those of each of its stages."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.train_config import TrainConfig
from commands.train_sparsity_config import SparsityConfig
from deploy.choices import LatencyPrecision
from pruning.selection.rounding import Direction
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SlimConfig(SparsityConfig):
    """Train sparse, prune and fine-tune, once or in rounds; --epochs is for each sparse training."""

    rounds: int = 1  # times the three stages are run; each cuts a part of what is to go
    finetune_epochs: int = 100  # passes over the training images in each fine-tuning
    percent: float | None = None  # share of channels that each round cuts; 0.5 by default
    target: str = ""  # what the last round must reach: macs=50%, params=700K, ms=8, speedup=3; by equal factors
    runtime: str = "ncnn"  # where ms and speedup count: ncnn, onnx, openvino, torchscript or tensorrt
    precision: LatencyPrecision = "fp32"  # in which the network is served there: fp32, fp16 or int8
    threads: int = 1  # of the processor there
    latency_table: str = ""  # times of the layers there, by default measured once on this machine and cached
    latency_layers: str = ""  # only write a folder of layers for another device to time, which gives such a table
    # widths to keep: pow2 (the default), a number to be a multiple of, or none; for ms and speedup the fast ones
    round: str = ""
    round_direction: Direction = "nearest"  # up, down or nearest
    min_channels: int = 1  # fewest channels of a layer
    distill: float = 0.0  # weight of a teacher's answers in fine-tuning; the teacher is the first sparse network
    teacher: str = ""  # another teacher for it
    resume: str = ""  # continue the latest run, or the run in this folder
    report: str = ""  # train nothing; write report.html and report.json of the run in this folder
    project: str = "runs/slim"  # where run folders are made

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "finetune_epochs"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {getattr(self, name)}: expected at least 1")
        if self.single_cls:
            raise ConfigError("--single-cls is not for several stages; give data of one class")
        if self.latency_layers and self.resume:
            raise ConfigError("--latency-layers only writes what a device needs to measure; leave --resume out")
        # Each stage checks its own settings; when its turn comes, hours of training may be lost.
        self.pruning("weights.pt", Path("prune"), target=self.target)
        self.finetuning("weights.pt", Path("finetune"), teacher=self.teacher)

    def sparse_training(self, weights: str, folder: Path, *, is_first: bool) -> SparsityConfig:
        """Return a sparsity training from `weights` into `folder`.

        Later than the first one it trains the network as it comes, so that teachers and students have its anchors.
        """
        own = {"cfg": self.cfg if is_first else "", "noautoanchor": self.noautoanchor or not is_first}
        return SparsityConfig(**{**self._values_of(SparsityConfig), **_place(weights, folder), **own})

    def pruning(self, weights: str, folder: Path, *, target: str) -> PruneConfig:
        """Return a cut of `weights`, measured before and after, into `folder`."""
        return PruneConfig(
            weights=weights,
            percent=self.percent,
            target=target,
            runtime=self.runtime,
            precision=self.precision,
            threads=self.threads,
            latency_table=self.latency_table,
            latency_layers=self.latency_layers,
            # Channels are ranked by what was drawn to zero.
            criterion="kernel_l1" if self.sparsity == "kernel" else "bn_gamma",
            shortcuts=self.shortcuts,
            round=self.round,
            round_direction=self.round_direction,
            min_channels=self.min_channels,
            data=self.data,
            img_size=self.test_size,
            batch_size=self.batch_size,
            device=self.device,
            workers=self.workers,
            cache_dir=self.cache_dir,
            noplots=self.noplots,
            project=str(folder.parent),
            name=folder.name,
            exist_ok=True,
        )

    def finetuning(self, weights: str, folder: Path, *, teacher: str) -> FinetuneConfig:
        """Return a fine-tuning of pruned `weights` into `folder`, with `teacher` where there is to be one."""
        own = {
            "cfg": "",
            "epochs": self.finetune_epochs,
            "teacher": teacher if self.distill else "",
            "distill": self.distill,
            "scale_rate": self.scale_rate,
        }
        return FinetuneConfig(**{**self._values_of(TrainConfig), **_place(weights, folder), **own})

    def _values_of(self, kind: type[TrainConfig]) -> dict[str, Any]:
        """Return the settings that a stage of this kind has as well."""
        return {item.name: getattr(self, item.name) for item in fields(kind)}


def _place(weights: str, folder: Path) -> dict[str, Any]:
    """Where a training stage starts and where it writes."""
    return {
        "weights": weights,
        "project": str(folder.parent),
        "name": folder.name,
        "exist_ok": True,  # a run killed before its first checkpoint has left the folder
        "resume": "",
    }
