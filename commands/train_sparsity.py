"""Sparsity training as a run: its settings, and the hooks it adds to plain training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from commands.train_sparsity_config import SparsityConfig
from engine.training.hooks import Hook
from pruning.choices import Sparsity
from pruning.sparsity.monitor import SparsityMonitor, watched
from pruning.sparsity.penalties import SparsityHook, make_penalties
from pruning.sparsity.scale_rate import ScaleRateHook
from tasks.task import Network
from utils.config.values import warn_of_ignored

LOGGER = logging.getLogger(__name__)

# Strengths that other kinds of sparsity have.
_UNUSED: Mapping[Sparsity, tuple[str, ...]] = {
    "bn": ("srb", "src"),
    "residual": ("srb", "src"),
    "kernel": ("srb", "src", "beta_ratio"),
    "mixed": ("sr",),
}


def sparsity_hooks(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """Return the hooks of a sparsity training."""
    assert isinstance(config, SparsityConfig)
    warn_of_ignored(config, {f"--sparsity {config.sparsity}": _UNUSED[config.sparsity]})
    penalties = make_penalties(
        network.model,
        sparsity=config.sparsity,
        strengths=config.strengths,
        shortcuts=config.shortcuts,
        is_decayed=config.decay,
        image_chw=network.trace_chw,
    )
    if not penalties:
        LOGGER.warning("no sparsity: --no-st or a strength of 0, this is plain training")
        return ()
    monitor = SparsityMonitor(
        network.model,
        watched(config.sparsity, config.strengths, scale_rate=config.scale_rate),
        shortcuts=config.shortcuts,
        aim=config.aim,
        is_decayed=config.decay,
        folder=folder,
        is_plotting=not config.noplots,
        image_chw=network.trace_chw,
    )
    return ScaleRateHook(config.scale_rate), SparsityHook(penalties), monitor


def run_sparsity_training(config: SparsityConfig) -> TrainResult | None:
    """Train, validate, and write the run folder; None on all but the first process."""
    return run_training(config, hooks=sparsity_hooks)
