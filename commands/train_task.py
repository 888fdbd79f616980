"""A detector's batches and loss, made from the settings of its training: what ranking by data and rounds train on."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import islice

import torch

from commands.train_assembly import make_loss
from commands.train_config import TrainConfig
from commands.train_parts import Data, make_train_loader, read_data, read_hyp
from engine.training.distributed import Process
from engine.training.task import TrainingTask
from models.detector import Detector
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray
from pruning.importance.taylor import taylor_importance
from utils.config.hyp import Hyp
from utils.device import amp_dtype, select_device
from utils.errors import ConfigError


def detector_taylor(model: Detector, graph: ChannelGraph, *, config: TrainConfig, batches: int) -> FloatArray:
    """Measure importance by Taylor expansion on a detector's training images with the usual augmentation.

    Args:
        model: Moved to the device of `config` and back; otherwise unchanged.
        graph: Its channels.
        config: Training settings: data set, augmentation, sizes, device.
        batches: How many to average over.

    Returns:
        (num_ids,), see `taylor_importance`.

    Raises:
        ConfigError: Data and network have different numbers of classes.
        DataError: The data set cannot be read.
    """
    home = next(model.parameters()).device
    model.to(select_device(config.device))
    try:
        task = detector_task_of(model, config)
        return taylor_importance(model, graph, islice(task.batches(0), batches), loss_fn=task.loss_of)
    finally:
        model.to(home)


def detector_task_of(model: Detector, config: TrainConfig) -> TrainingTask:
    """Build `detector_task` from the data set and the hyper-parameters that the settings name.

    Raises:
        ConfigError: Data and network have different numbers of classes.
        DataError: The data set cannot be read.
    """
    data = read_data(config)
    if len(data.train.names) != model.spec.num_classes:
        raise ConfigError(
            f"--data {config.data} has {len(data.train.names)} classes, the network {model.spec.num_classes}; "
            "give the data set it was trained on"
        )
    return detector_task(model, config=config, data=data, hyp=read_hyp(config))


def detector_task(model: Detector, *, config: TrainConfig, data: Data, hyp: Hyp) -> TrainingTask:
    """Return the detection loss on augmented training batches, as `train.py` makes them from these settings.

    It serves all networks pruned from `model`: anchors, strides and classes are the same. Where the settings ask for
    float16 it computes in float32, since a ranking scales no gradients; bfloat16 is supported.
    """
    device, process = next(model.parameters()).device, Process()
    # Numbers of batches are no epochs of a run: mosaics never end.
    endless = replace(config, epochs=sys.maxsize, close_mosaic=0)
    dtype = amp_dtype(device, config.amp_name)
    return TrainingTask(
        loader=make_train_loader(endless, model, data, hyp=hyp, device=device, process=process),
        loss=make_loss(config, model, hyp=hyp, process=process),
        device=device,
        autocast=dtype if dtype is torch.bfloat16 else None,
    )
