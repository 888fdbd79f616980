"""Batches and a loss: all that ranking by data and short fine-tuning need, for detectors and classifiers alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.assembly import make_loss
from engine.config import TrainConfig
from engine.distributed import Process
from engine.materials import Data, make_train_loader, read_data, read_hyp
from engine.optim import build_optimizer
from models.detector import Detector
from utils.batch import Batch
from utils.device import amp_dtype, seed_everything
from utils.errors import ConfigError, DataError, TrainingError
from utils.hyp import Hyp

# Longest gradient of all parameters together, as in the Trainer.
_CLIP_NORM = 10.0

BatchT = TypeVar("BatchT")

# From a network and a batch to a scalar loss.
LossFn = Callable[[nn.Module, BatchT], Tensor]

# Pictures and their classes.
Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingTask(Generic[BatchT]):
    """What a network is trained for.

    Attributes:
        batches: Endless batches of the training data, in an order that the number given decides.
        loss: Runs the network on one batch and gives the scalar loss.
    """

    batches: Callable[[int], Iterator[BatchT]]
    loss: LossFn[BatchT]

    def train_(
        self,
        model: nn.Module,
        *,
        updates: int,
        lr: float,
        momentum: float = 0.9,
        decay: float = 5e-4,
        number: int = 0,
    ) -> float:
        """Train with plain SGD at one rate, on batches of order `number`; leaves the network's mode as it was.

        Returns:
            The mean loss of these updates; 0 for none.

        Raises:
            TrainingError: The loss is no number.
        """
        was_training = model.training
        seed_everything(number)
        optimizer = build_optimizer("sgd", model.train(), lr=lr, momentum=momentum, weight_decay=decay)
        losses = []
        for batch in islice(self.batches(number), updates):
            loss = self.loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), _CLIP_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
        model.train(was_training)
        mean = float(torch.stack(losses).mean()) if losses else 0.0
        if not math.isfinite(mean):
            raise TrainingError(f"the loss became {mean} while fine-tuning at rate {lr:g}; lower the learning rate")
        return mean


def classifier_task(images: Tensor, labels: Tensor, *, batch_size: int = 64, seed: int = 0) -> TrainingTask[Labelled]:
    """Cross entropy on pictures in memory.

    Args:
        images: (N, C, H, W) as the network takes them, on its device.
        labels: (N,) int64 classes, on the same device.
        batch_size: Of every batch; what is left of an epoch is dropped.
        seed: Of the order.

    Raises:
        DataError: Less than one batch of pictures.
    """
    if len(images) < batch_size:
        raise DataError(f"{len(images)} pictures are less than a batch of {batch_size}; give more or smaller batches")

    def batches(number: int) -> Iterator[Labelled]:
        generator = np.random.default_rng((seed, number))
        while True:
            order = torch.from_numpy(generator.permutation(len(images))).to(images.device)
            for chosen in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
                yield images[chosen], labels[chosen]

    return TrainingTask(batches=batches, loss=lambda model, batch: F.cross_entropy(model(batch[0]).float(), batch[1]))


def detector_task_of(model: Detector, config: TrainConfig) -> TrainingTask[Batch]:
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


def detector_task(model: Detector, *, config: TrainConfig, data: Data, hyp: Hyp) -> TrainingTask[Batch]:
    """The detection loss on augmented training batches, as `train.py` makes them from these settings.

    It serves all networks pruned from `model`: anchors, strides and classes stay. Of mixed precision it knows
    bfloat16; where the settings ask for float16 it computes in float32.
    """
    device = next(model.parameters()).device
    process = Process()
    # Numbers of batches are no epochs of a run: mosaics never end.
    endless = replace(config, epochs=sys.maxsize, close_mosaic=0)
    loader = make_train_loader(endless, model, data, hyp=hyp, device=device, process=process)
    detection_loss = make_loss(config, model, hyp=hyp, process=process)
    is_bfloat16 = amp_dtype(device, config.amp_name) is torch.bfloat16

    def batches(number: int) -> Iterator[Batch]:
        # Epochs of different numbers differ in order and augmentation.
        for epoch in count(number):
            loader.set_epoch(epoch)
            yield from loader

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        images = batch.to(device).normalised().contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_bfloat16):
            heads = network(images)
        return detection_loss(heads, batch.targets).total

    return TrainingTask(batches=batches, loss=loss)
