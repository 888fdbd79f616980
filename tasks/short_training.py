"""Batches and loss of a network outside of a run: what ranking by data and the rounds of `--iterative` train on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import torch
from torch import nn

from engine.training.distributed import Process
from engine.training.task import TrainingTask
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray
from pruning.choices import CriterionName
from pruning.importance.fisher import fisher_importance
from pruning.importance.taylor import taylor_importance
from tasks.settings import TaskSettings
from tasks.task import Network, Task
from utils.config.choices import Amp
from utils.config.hyp import Hyp
from utils.device import amp_dtype
from utils.errors import ConfigError


def short_training(
    task: Task, settings: TaskSettings, network: Network, *, hyp: Hyp, device: torch.device, amp: Amp = "auto"
) -> TrainingTask:
    """Return augmented training batches and the loss, as train.py makes them from these settings.

    It serves all networks pruned from `network`: image size and classes are the same. Where the settings ask for
    float16 it computes in float32, since a ranking scales no gradients; bfloat16 is supported.

    Raises:
        ConfigError: Data and network have different numbers of classes.
        DataError: The data cannot be read.
    """
    data = task.read_data(settings, network=network)
    if len(data.names) != network.spec.num_classes:
        raise ConfigError(
            f"--data {settings.data} has {len(data.names)} classes, the network {network.spec.num_classes}; "
            "give the data set it was trained on"
        )
    # Numbers of batches are no epochs of a run: mosaics never end.
    endless = replace(settings, epochs=sys.maxsize, close_mosaic=0)
    dtype = amp_dtype(device, amp)
    return TrainingTask(
        loader=task.train_loader(endless, network, data, hyp=hyp, device=device, process=Process()),
        loss=task.loss(settings, network, hyp=hyp, process=Process()),
        device=device,
        autocast=dtype if dtype is torch.bfloat16 else None,
    )


def importance_on_training_batches(
    criterion: CriterionName,
    task: Task,
    settings: TaskSettings,
    network: Network,
    *,
    hyp: Hyp,
    device: torch.device,
    num_batches: int,
) -> Callable[[nn.Module, ChannelGraph], FloatArray]:
    """Return a function that measures importance (num_ids,) by one of `MEASURED_CRITERIA` on augmented batches.

    It measures `network`, or one without some of its bottlenecks, on `device` and puts it back where it was.
    """

    def measure(model: nn.Module, graph: ChannelGraph) -> FloatArray:
        before = next(model.parameters()).device
        placed = network.with_model(model.to(device))
        try:
            training = short_training(task, settings, placed, hyp=hyp, device=device)
            batches = islice(training.batches(0), num_batches)
            importance = fisher_importance if criterion == "fisher" else taylor_importance
            return importance(model, graph, batches, loss_fn=training.loss_of)
        finally:
            model.to(before)

    return measure
