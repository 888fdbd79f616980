"""The Trainer of a run and the engine's own hooks, put together from settings."""

from __future__ import annotations

from pathlib import Path

import torch

from commands.train_config import TrainConfig
from commands.train_parts import Data, make_train_loader, train_size
from engine.evaluation.evaluate import EvalSettings
from engine.losses.detection import DetectionLoss, LossGains
from engine.training.checkpointing import EmaHook
from engine.training.distributed import Process, mean_over_ranks
from engine.training.hooks import Hook
from engine.training.logging_hooks import EpochLineHook, ResultsHook, TensorBoardHook
from engine.training.optim import build_optimizer
from engine.training.schedule import Schedule
from engine.training.trainer import Trainer, TrainerSettings
from engine.training.validation import EarlyStoppingHook, ImageWeightsHook, ValidationHook
from models.detector import Detector
from utils.config.hyp import Hyp
from utils.datasets.loading.loader import Loader
from utils.device import amp_dtype

# Images of a image that --quad joins.
_QUAD = 4


def make_trainer(
    config: TrainConfig, model: Detector, data: Data, *, hyp: Hyp, device: torch.device, process: Process
) -> Trainer:
    """Return a Trainer without hooks for `model`, which lies on `device`."""
    loader = make_train_loader(config, model, data, hyp=hyp, device=device, process=process)
    accumulate = max(round(config.nominal_batch / config.batch_size), 1)
    return Trainer(
        model,
        loss=make_loss(config, model, hyp=hyp, process=process),
        optimizer=build_optimizer(
            config.optimizer_name,
            model,
            lr=hyp.lr0,
            momentum=hyp.momentum,
            weight_decay=hyp.weight_decay * config.batch_size * accumulate / config.nominal_batch,
        ),
        schedule=Schedule(
            name=config.schedule_name, hyp=hyp, epochs=config.epochs, batches=len(loader), accumulate=accumulate
        ),
        loader=loader,
        settings=TrainerSettings(
            epochs=config.epochs,
            device=device,
            autocast=amp_dtype(device, config.amp_name),
            seed=config.seed,
            scales=_scales(train_size(config, model), model.max_stride) if config.multi_scale else (),
            stride=model.max_stride,
        ),
        process=process,
    )


def make_loss(config: TrainConfig, model: Detector, *, hyp: Hyp, process: Process) -> DetectionLoss:
    """Return the loss of `model`, its gains scaled to the data and the training size."""
    gains = LossGains.from_hyp(
        hyp,
        num_classes=model.spec.num_classes,
        num_levels=len(model.strides),
        img_size=train_size(config, model),
    )
    return DetectionLoss(
        gains=gains,
        anchors=model.anchors,
        strides=model.strides,
        batch_factor=process.world_size * (_QUAD if config.quad else 1),
        mean_over_ranks=mean_over_ranks,
    )


def _scales(size: int, stride: int) -> tuple[int, ...]:
    """Multiples of the stride from half of `size` to one and a half."""
    return tuple(range(max(size // 2 // stride, 1) * stride, size * 3 // 2 + 1, stride))


def make_observers(
    config: TrainConfig, data: Data, *, ema: EmaHook, loader: Loader, device: torch.device, folder: Path
) -> list[Hook]:
    """Return the hooks that measure and report; validation (on `loader`) comes first, since the others report it."""
    validation = ValidationHook(
        ema=ema.ema,
        loader=loader,
        index=data.val,
        settings=EvalSettings(
            autocast=amp_dtype(device, config.amp_name), single_cls=config.single_cls, channels_last=True
        ),
        is_final_only=config.notest,
    )
    hooks: list[Hook] = [validation, EarlyStoppingHook(config.patience)]
    if config.image_weights:
        hooks.append(ImageWeightsHook(validation=validation, index=data.train))
    return [
        *hooks,
        EpochLineHook(),
        ResultsHook(folder, is_plotting=not config.noplots),
        TensorBoardHook(folder, names=data.train.names, is_plotting=not config.noplots),
    ]
