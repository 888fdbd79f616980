"""Short trainings at a constant rate, and the batches and the loss that a ranking by data is measured with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import torch
from torch import Tensor, nn

from engine.training.optim import build_optimizer
from engine.training.schedule import Schedule
from engine.training.trainer import Trainer, TrainerSettings, TrainingLoader, TrainingLoss
from utils.datasets.loading.batch import TrainingBatch
from utils.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """The data and the loss that a network is trained with; a detector's and a classifier's differ only in these.

        task = TrainingTask(loader=loader, loss=loss, device=device)
        importance = taylor_importance(model, graph, islice(task.batches(1), 8), loss_fn=task.loss_of)
        task.train_(model, updates=30, lr=1e-3, number=1)

    Attributes:
        loader: Loader of the training data.
        loss: Loss to minimise.
        device: Device that the network is on.
        autocast: Dtype of mixed precision; None for none.
    """

    loader: TrainingLoader
    loss: TrainingLoss
    device: torch.device
    autocast: torch.dtype | None = None

    def batches(self, number: int) -> Iterator[TrainingBatch]:
        """Yield the batches of epoch `number`, counted from 0, and of the epochs after it, without end."""
        for epoch in count(number):
            self.loader.set_epoch(epoch)
            yield from self.loader

    def loss_of(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        """Compute the scalar loss of a network on a batch."""
        images = batch.to(self.device).normalised().contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            outputs = model(images)
        return self.loss(outputs, batch.targets).total

    def train_(
        self,
        model: nn.Module,
        *,
        updates: int,
        lr: float,
        number: int = 0,
        momentum: float = 0.9,
        decay: float = 5e-4,
    ) -> float:
        """Train with SGD at a constant rate on the first of `batches(number)`, then restore the network's mode.

        Order, augmentation and dropout depend on `number` alone.

        Returns:
            Sum of the parts of the loss, mean over these updates; 0 if there are none.

        Raises:
            TrainingError: The loss is not finite.
        """
        if not updates:
            return 0.0
        was_training = model.training
        trainer = Trainer(
            model,
            loss=self.loss,
            optimizer=build_optimizer("sgd", model, lr=lr, momentum=momentum, weight_decay=decay),
            schedule=Schedule.constant(lr, batches=updates),
            loader=_FirstBatches(self, updates),
            settings=TrainerSettings(
                epochs=number + 1, device=self.device, autocast=self.autocast, has_progress=False
            ),
        )
        trainer.state.epoch = number - 1
        try:
            state = trainer.fit()
        except TrainingError as error:
            raise TrainingError(
                f"the loss became NaN or infinite while training at rate {lr:g}; lower the learning rate"
            ) from error
        finally:
            model.train(was_training)
        return sum(state.losses.values())


class _FirstBatches:
    """Loader whose epoch is the first batches that a task yields from that epoch on."""

    def __init__(self, task: TrainingTask, num_batches: int) -> None:
        self._task, self._num_batches = task, num_batches
        self._epoch = 0

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[TrainingBatch]:
        return islice(self._task.batches(self._epoch), self._num_batches)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration begins with."""
        self._epoch = epoch
