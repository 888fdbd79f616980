"""How fast a network trains and is validated on this machine, by a few real steps that leave no file behind."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch

from commands.train_assembly import make_trainer
from commands.train_config import TrainConfig
from engine.evaluation.evaluator import Evaluator
from engine.training.distributed import Process
from engine.training.trainer import TrainingLoader
from tasks.task import Data, Network, Task
from utils.config.hyp import Hyp
from utils.datasets.loading.batch import TrainingBatch

# Batches that are trained on to warm up, and then to time; validated are as many images as these have.
_WARM_UP, _TIMED = 1, 3
# Share of a training step that its forward pass takes; the backward pass takes about twice as long.
_FORWARD = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that one image takes.

    Attributes:
        training: In a training step, with loading and augmentation.
        validation: In a validation, with loading, suppression and scoring.
    """

    training: float
    validation: float

    def minutes(self, *, epochs: int, images: tuple[int, int], teacher: Pace | None = None) -> float:
        """Return the minutes of a training.

        Args:
            epochs: Epochs of the training; each one ends with a validation.
            images: Numbers of training and validation images.
            teacher: Pace of the network whose answers are learnt, if there is one.
        """
        training = self.training + (_FORWARD * teacher.training if teacher else 0.0)
        return epochs * (images[0] * training + images[1] * self.validation) / 60


def probe(task: Task, config: TrainConfig, network: Network, data: Data, *, hyp: Hyp, device: torch.device) -> Pace:
    """Time a copy of the network on its own data.

    Args:
        task: Task of the network.
        config: Settings of the training.
        network: Network to time; it is not changed.
        data: Data to train and validate on.
        hyp: Hyper-parameters of the training.
        device: Device to compute on.
    """
    model = copy.deepcopy(network.model).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    own = network.with_model(model)
    # Images are read from the disk, as in a first epoch: to fill the memory with all of them would take longer.
    config = replace(config, cache_images=False)
    trainer = make_trainer(task, config, own, data, hyp=hyp, device=device, process=Process())
    loader, seconds, images = trainer.loader, 0.0, 0
    for epoch, batches in enumerate((_WARM_UP, _TIMED)):
        trainer.loader = _FirstBatches(loader, batches)
        trainer.settings = replace(trainer.settings, epochs=epoch + 1, has_progress=False)
        seconds, images = trainer.state.seconds, trainer.state.images
        state = trainer.fit()
    training = (state.seconds - seconds) / max(state.images - images, 1)
    few = task.evaluation_set(config, data.val, network=own).few(_TIMED * config.batch_size)
    started = time.perf_counter()
    evaluation = Evaluator(data=few, device=device).evaluate(own.model.eval())
    return Pace(training=training, validation=(time.perf_counter() - started) / max(evaluation.images, 1))


class _FirstBatches:
    """Loader whose epochs are the first batches of another loader's."""

    def __init__(self, loader: TrainingLoader, num_batches: int) -> None:
        self._loader, self._num_batches = loader, min(num_batches, len(loader))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[TrainingBatch]:
        return islice(self._loader, self._num_batches)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration draws."""
        self._loader.set_epoch(epoch)
