"""Batches and a loss: all that data-driven ranking and short fine-tuning need, for detectors and classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.training.optim import build_optimizer
from utils.device import seed_everything
from utils.errors import DataError, TrainingError

# Maximum norm of the gradient of all parameters together, as in the Trainer.
_CLIP_NORM = 10.0

BatchT = TypeVar("BatchT")

# Computes the scalar loss of a network on a batch.
LossFn = Callable[[nn.Module, BatchT], Tensor]

# Images and their classes.
Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingTask(Generic[BatchT]):
    """The data and the loss that a network is trained with.

    Attributes:
        batches: Function from a seed to endless batches of the training data; the seed decides their order.
        loss: Function that runs the network on one batch and returns the scalar loss.
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
        """Train with SGD at a constant rate on batches drawn with seed `number`, then restore the network's mode.

        Returns:
            Mean loss of these updates; 0 if there are none.

        Raises:
            TrainingError: The loss is not finite.
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
    """Build the task of a classifier: cross entropy on images in memory.

    Args:
        images: Network input (N, C, H, W), on the network's device.
        labels: Classes (N,) int64, on the same device.
        batch_size: Images per batch; an incomplete last batch of an epoch is dropped.
        seed: Seed of the order.

    Raises:
        DataError: There are fewer images than one batch takes.
    """
    if len(images) < batch_size:
        raise DataError(f"{len(images)} images are fewer than a batch of {batch_size}; give more, or smaller batches")

    def batches(number: int) -> Iterator[Labelled]:
        generator = np.random.default_rng((seed, number))
        while True:
            order = torch.from_numpy(generator.permutation(len(images))).to(images.device)
            for chosen in order[: len(order) // batch_size * batch_size].view(-1, batch_size):
                yield images[chosen], labels[chosen]

    return TrainingTask(batches=batches, loss=lambda model, batch: F.cross_entropy(model(batch[0]).float(), batch[1]))
