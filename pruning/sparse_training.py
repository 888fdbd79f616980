"""Sparsity training as a run: its settings, and the hooks it adds to plain training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.config import TrainConfig
from engine.hooks import Hook
from engine.run_result import TrainResult
from engine.training import run_training
from models.detector import Detector
from pruning.scale_rate import ScaleRateHook
from pruning.shortcuts import Shortcuts
from pruning.sparsity import Sparsity, SparsityHook, Strengths, make_penalties
from pruning.sparsity_monitor import SparsityMonitor, watched
from utils.config_values import warn_of_ignored
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

# Strengths that other kinds of sparsity have.
_UNUSED: Mapping[Sparsity, tuple[str, ...]] = {
    "bn": ("srb", "src"),
    "residual": ("srb", "src"),
    "kernel": ("srb", "src", "beta_ratio"),
    "mixed": ("sr",),
}


@dataclass(frozen=True, kw_only=True)
class SparsityConfig(TrainConfig):
    """Train a detector so that whole channels fall to zero and can be pruned."""

    st: bool = True  # --no-st trains plainly, without sparsity
    sparsity: Sparsity = "bn"  # what is drawn to zero: bn, residual, kernel, mixed
    sr: float | None = None  # strength; by default 1e-3 for bn and residual, 1e-5 for kernel
    srb: float = 5e-4  # strength on batch-norm scales for mixed
    src: float = 1e-5  # strength on convolution weights for mixed
    beta_ratio: float = 10.0  # strength on batch-norm shifts, as a multiple of that on the scales
    scale_rate: float = 1.0  # learning rate of batch-norm scales, as a multiple; above 1 suits short runs
    decay: bool = True  # --no-decay keeps the strength; else it falls to a tenth over the run
    shortcuts: Shortcuts = "skip"  # channels that shortcuts join: skip leaves them dense, tied prunes them together
    aim: float = 0.5  # share of channels you mean to cut; the advice of each epoch is for it

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sr", "srb", "src", "beta_ratio", "scale_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value}: expected 0 or a positive number, such as 0.001")
        if not 0 < self.aim < 1:
            raise ConfigError(f"--aim {self.aim}: expected a share between 0 and 1, such as 0.5")
        if self.evolve:
            raise ConfigError("--evolve is not for sparsity training; search hyper-parameters with train.py")

    @property
    def strengths(self) -> Strengths:
        """How hard each kind of parameter is drawn."""
        if not self.st:
            return Strengths()
        if self.sparsity == "mixed":
            return Strengths(scale=self.srb, shift=self.beta_ratio * self.srb, kernel=self.src)
        if self.sparsity == "kernel":
            return Strengths(kernel=1e-5 if self.sr is None else self.sr)
        scale = 1e-3 if self.sr is None else self.sr
        return Strengths(scale=scale, shift=self.beta_ratio * scale)


def sparsity_hooks(model: Detector, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """The hooks of a sparsity training."""
    assert isinstance(config, SparsityConfig)
    warn_of_ignored(config, {f"--sparsity {config.sparsity}": _UNUSED[config.sparsity]})
    penalties = make_penalties(
        model,
        sparsity=config.sparsity,
        strengths=config.strengths,
        shortcuts=config.shortcuts,
        is_decayed=config.decay,
    )
    if not penalties:
        LOGGER.warning("no sparsity: --no-st or a strength of 0, this is plain training")
        return ()
    monitor = SparsityMonitor(
        model,
        watched(config.sparsity, config.strengths, scale_rate=config.scale_rate),
        shortcuts=config.shortcuts,
        aim=config.aim,
        is_decayed=config.decay,
        folder=folder,
        is_plotting=not config.noplots,
    )
    return ScaleRateHook(config.scale_rate), SparsityHook(penalties), monitor


def run_sparsity_training(config: SparsityConfig) -> TrainResult | None:
    """Train, validate, and write the run folder; None on all but the first process."""
    return run_training(config, hooks=sparsity_hooks)
