"""Sparsity training as a run: its settings, and the hooks it adds to plain training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from commands.prune_latency import table_for
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_recipe import read_hyp
from commands.train_result import TrainResult
from commands.train_sparsity_config import CHOICE, SparsityConfig
from engine.training.hooks import Hook
from pruning.channels.graph import ChannelGraph
from pruning.choices import Sparsity
from pruning.selection.planner import Planner
from pruning.sparsity.fading import FadingHook, layers_without_norm
from pruning.sparsity.monitor import FADING, SparsityMonitor, Watched, watched
from pruning.sparsity.penalties import SparsityHook, make_penalties
from pruning.sparsity.scale_rate import ScaleRateHook
from pruning.surgery.plan import PruningPlan
from tasks.choose import task_of
from tasks.short_training import importance_on_training_batches
from tasks.task import Network
from utils.config.values import warn_of_ignored
from utils.storage.run_folder import plain

LOGGER = logging.getLogger(__name__)

# Strengths that other kinds of sparsity have.
_UNUSED: Mapping[Sparsity, tuple[str, ...]] = {
    "bn": ("srb", "src"),
    "residual": ("srb", "src"),
    "kernel": ("srb", "src", "beta_ratio"),
    "mixed": ("sr",),
}
# Settings of penalties.
_OF_STRENGTHS = ("srb", "src", "beta_ratio", "scale_rate", "decay", "aim")


def sparsity_hooks(network: Network, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """Return the hooks of a sparsity training."""
    assert isinstance(config, SparsityConfig)
    if config.is_auto:
        warn_of_ignored(config, {"--sr auto chooses channels itself": _OF_STRENGTHS})
        return FadingHook(
            network.model, partial(_choose, network, config), folder=folder, image_chw=network.trace_chw
        ), _monitor(network, FADING, config, folder)
    unused = (*_UNUSED[config.sparsity], *CHOICE)
    warn_of_ignored(config, {f"--sparsity {config.sparsity}": unused})
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
    kinds = watched(config.sparsity, config.strengths, scale_rate=config.scale_rate)
    monitor = _monitor(network, kinds, config, folder)
    return ScaleRateHook(config.scale_rate), SparsityHook(penalties), monitor


def _monitor(network: Network, kinds: Mapping[str, Watched], config: SparsityConfig, folder: Path) -> SparsityMonitor:
    return SparsityMonitor(
        network.model,
        kinds,
        shortcuts=config.shortcuts,
        aim=config.aim,
        is_decayed=config.decay,
        folder=folder,
        is_plotting=not config.noplots,
        image_chw=network.trace_chw,
    )


def _choose(network: Network, config: SparsityConfig) -> PruningPlan:
    """Choose the channels to prune by Fisher information, against what they cost, and say what will be left."""
    graph = ChannelGraph.of(network.model, image_chw=network.trace_chw)
    choice = replace(config.choice(config.weights), protect=layers_without_norm(graph))
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    image_chw = task.image_chw(network, config.test_size)
    table = table_for(choice, task, network, image_chw=image_chw, weights="")
    measure = importance_on_training_batches(
        choice.criterion,
        task,
        replace(config, cache_images=False),
        network,
        hyp=read_hyp(config, task.recipe),
        device=next(network.model.parameters()).device,
        num_batches=choice.taylor_batches,
    )
    settings = choice.plan_settings(image_chw, network.trace_chw, table)
    planner = Planner.of(network.model, settings, measure=measure)
    allocation = planner.allocate()
    LOGGER.info("chosen before training:\n%s", planner.describe(allocation))
    return planner.plan(allocation, settings=plain(choice))


def run_sparsity_training(config: SparsityConfig) -> TrainResult | None:
    """Train, validate, and write the run folder; None on all but the first process."""
    return run_training(config, hooks=sparsity_hooks)
