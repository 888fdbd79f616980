"""The Trainer of a run and the engine's own hooks, put together from settings."""

from __future__ import annotations

from pathlib import Path

import torch

from commands.train_config import TrainConfig
from commands.train_recipe import is_settled
from engine.evaluation.evaluator import Evaluator
from engine.training.checkpointing import CheckpointHook, EmaHook, SavePolicy
from engine.training.distributed import Process
from engine.training.hooks import Hook
from engine.training.logging_hooks import EpochLineHook, ResultsHook, TensorBoardHook
from engine.training.optim import build_optimizer
from engine.training.schedule import Schedule
from engine.training.trainer import Trainer, TrainerSettings
from engine.training.validation import EarlyStoppingHook, ValidationHook
from tasks.task import Data, Network, Task
from utils.config.hyp import Hyp
from utils.device import amp_dtype


def make_trainer(
    task: Task,
    config: TrainConfig,
    network: Network,
    data: Data,
    *,
    hyp: Hyp,
    device: torch.device,
    process: Process,
) -> Trainer:
    """Return a Trainer without hooks for a network, which lies on `device`."""
    loader = task.train_loader(config, network, data, hyp=hyp, device=device, process=process)
    scales = task.scales(config, network)
    nominal = config.nominal_batch or task.recipe.nominal_batch
    accumulate = max(round(nominal / config.batch_size), 1)
    # A loss that is a sum over images grows with the batch, and the decay with it.
    decay = hyp.weight_decay * (1 if task.recipe.has_mean_loss else config.batch_size * accumulate / nominal)
    return Trainer(
        network.model,
        loss=task.loss(config, network, hyp=hyp, process=process),
        optimizer=build_optimizer(
            config.optimizer_name, network.model, lr=hyp.lr0, momentum=hyp.momentum, weight_decay=decay
        ),
        schedule=Schedule(
            name=config.schedule_name,
            hyp=hyp,
            epochs=config.epochs,
            batches=len(loader),
            accumulate=accumulate,
            least_warmup=task.recipe.least_warmup,
            is_warmup_exact=config.warmup_epochs is not None and is_settled(config),
            milestones=config.milestones,
        ),
        loader=loader,
        settings=TrainerSettings(
            epochs=config.epochs,
            device=device,
            autocast=amp_dtype(device, config.amp_name),
            seed=config.seed,
            scales=tuple(scales),
            stride=scales.step,
            is_mean_of_batches=task.recipe.has_mean_loss,
        ),
        process=process,
    )


def make_hooks(
    task: Task,
    config: TrainConfig,
    network: Network,
    data: Data,
    *,
    ema: EmaHook | None,
    evaluator: Evaluator,
    folder: Path,
) -> list[Hook]:
    """Return the hooks that average, measure, report and save, in the order in which they need each other."""
    average = ema.ema if ema else None
    validation = ValidationHook(evaluator, ema=average, is_final_only=config.notest)
    columns = task.columns
    return [
        *([ema] if ema else []),
        validation,
        EarlyStoppingHook(config.patience),
        *task.hooks(config, data, validation=validation),
        EpochLineHook(columns.line, digits=columns.digits),
        ResultsHook(folder, is_plotting=not config.noplots, columns=columns.table),
        TensorBoardHook(folder, names=data.names, is_plotting=not config.noplots, columns=columns.table),
        CheckpointHook(
            folder / "weights",
            spec=network.spec.to_dict(),
            names=data.names,
            config=config,
            ema=average,
            policy=SavePolicy(period=config.save_period, is_final_only=config.nosave, is_half=task.recipe.is_half),
        ),
    ]
