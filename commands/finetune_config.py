"""The settings of finetune_pruned.py."""

from __future__ import annotations

from dataclasses import dataclass

from commands.train_config import TrainConfig
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Train a pruned detector or classifier back to accuracy; it keeps its widths, anchors and classes."""

    weights: str = "pruned_model.pt"  # pruned checkpoint; a bare name is also looked for in the newest runs/prune/*
    cfg: str = ""  # only checked: the network is that of the weights, and another one is refused
    epochs: int = 100  # passes over the training images
    noautoanchor: bool = False  # always so here: the anchors are those of the checkpoint
    evolve: int = 0  # not here; search with train.py
    project: str = "runs/finetune"  # where run folders are made
    teacher: str = ""  # dense checkpoint whose answers are learnt beside the labels (knowledge distillation)
    distill: float = 1.0  # weight of the teacher's answers
    features: float = 1.0  # weight of what the teacher's layers read, where the plan of the cut tells which channels
    plan: str = ""  # plan of the cut that made the weights of the teacher; by default plan.json beside the weights
    freeze_zeros: bool = False  # weights that are exactly 0 in the checkpoint stay 0, see prune.py --unstructured
    scale_rate: float = 1.0  # learning rate of batch-norm scales, as a multiple: sparse training left them small

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("distill", "features"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"--{name} {getattr(self, name)}: expected 0 or a positive number, such as 1")
        if not 0 < self.scale_rate < float("inf"):
            raise ConfigError(f"--scale-rate {self.scale_rate}: expected a positive number, such as 1 or 20")
        if self.evolve:
            raise ConfigError("--evolve is not for fine-tuning; search hyper-parameters with train.py --weights")
