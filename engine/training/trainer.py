"""The training loop, with hooks as its extension points."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from engine.losses.detection import LossParts
from engine.training.distributed import Process
from engine.training.hooks import Hook, Step
from engine.training.schedule import Schedule
from engine.training.watch import LossWatch, named_losses
from utils.datasets.loading.batch import TrainingBatch
from utils.device import seed_everything
from utils.progress import progress


class TrainingLoader(Protocol):
    """A loader that the Trainer can train on."""

    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    def __iter__(self) -> Iterator[TrainingBatch]: ...

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, whose batches the next iteration draws."""


class TrainingLoss(Protocol):
    """A loss that the Trainer can minimise.

    Attributes:
        names: Names of the parts of the loss.
    """

    @property
    def names(self) -> Sequence[str]: ...

    def __call__(self, outputs: Any, targets: Tensor, /) -> LossParts: ...


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of the training loop.

    Attributes:
        epochs: Epochs of the run.
        device: Device on which the model trains.
        autocast: Dtype of mixed precision; None for none.
        seed: Seed of all randomness; samples, sizes and dropout of an epoch depend only on it and the epoch.
        clip_norm: Maximum norm of the gradient of all parameters together.
        scales: Image sizes of multi-scale training in pixels (multiples of the stride); empty keeps the loader's.
        stride: Pixels that both sides of the network's input must be multiples of.
        is_mean_of_batches: Whether a step takes the mean of the gradients of its batches, as suits a loss that is
            itself a mean; else their sum.
        has_progress: Whether the main process shows the progress of each epoch.
    """

    epochs: int
    device: torch.device
    autocast: torch.dtype | None = None
    seed: int = 0
    clip_norm: float = 10.0
    scales: tuple[int, ...] = ()
    stride: int = 1
    is_mean_of_batches: bool = False
    has_progress: bool = True


@dataclass(kw_only=True)
class TrainState:
    """Progress of a run: all that a checkpoint needs beyond weights and optimiser.

    Attributes:
        epoch: Current epoch, or the last one run, counted from 0; -1 before the first.
        losses: Mean of each part of the epoch's loss, by name.
        metrics: Metrics of the last validation, by name.
        best_fitness, best_epoch: Fitness and epoch of the best validation so far; of equal ones, the last.
        improved_epoch: Last epoch that was better than all before it; the newest where nothing can be measured.
        extra: Further values of the epoch, by name, that the hooks of a method report.
        is_interim: Set by a method's hook in its `epoch_end`: the network of this epoch is not yet what the method
            leads to (filters are off, weights still to be zeroed), so it cannot be the best one.
        images: Images trained on since this process started, over all ranks.
        seconds: Time spent on training steps since this process started.
        stop: Set by a hook to end training after this epoch.
    """

    epoch: int = -1
    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    extra: dict[str, float] = field(default_factory=dict)
    best_fitness: float = -1.0
    best_epoch: int = -1
    improved_epoch: int = -1
    is_interim: bool = False
    images: int = 0
    seconds: float = 0.0
    stop: bool = False

    def judge(self, fitness: float) -> None:
        """Record this epoch as the best unless an earlier one was better; of equal ones the later trained longer."""
        if self.is_interim or fitness < self.best_fitness:
            return
        if fitness > self.best_fitness:
            self.improved_epoch = self.epoch
        self.best_fitness, self.best_epoch = fitness, self.epoch


class Trainer:
    """Runs epochs over a loader; everything beyond forward, backward and step is a hook.

    One epoch, with the hook methods that each line calls:

        for batch in loader:
            outputs = model(images)
            total = loss(outputs, targets)  # after_loss
            total.backward()  # gradients_ready, once the gradients are complete
            optimizer.step()  # weights_updated
        # epoch_end
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: TrainingLoss,
        optimizer: Optimizer,
        schedule: Schedule,
        loader: TrainingLoader,
        settings: TrainerSettings,
        hooks: Sequence[Hook] = (),
        process: Process = Process(),  # noqa: B008 - immutable
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.schedule, self.loader, self.settings = schedule, loader, settings
        self.hooks, self.process = list(hooks), process
        self.state = TrainState()
        self.scaler = torch.amp.GradScaler(settings.device.type, enabled=settings.autocast is torch.float16)
        self._parallel: nn.Module = model

    def fit(self) -> TrainState:
        """Train from the epoch after `state.epoch` to the last, and return the final state."""
        if self.process.world_size > 1:
            devices = [self.settings.device] if self.settings.device.type == "cuda" else None
            self._parallel = DistributedDataParallel(self.model, device_ids=devices)
        for hook in self.hooks:
            hook.before_training(self)
        while self.state.epoch + 1 < self.settings.epochs and not self.state.stop:
            self.state.epoch += 1
            self.state.is_interim = False
            self._train_epoch()
            for hook in self.hooks:
                hook.epoch_end(self)
        for hook in self.hooks:
            hook.end(self)
        return self.state

    @property
    def lr(self) -> float:
        """Current learning rate of the decayed weights."""
        return float(self.optimizer.param_groups[1]["lr"])

    def resumable_state(self) -> dict[str, Any]:
        """Return the state of the loop and of its hooks, for a checkpoint."""
        return {
            "best_fitness": self.state.best_fitness,
            "best_epoch": self.state.best_epoch,
            "improved_epoch": self.state.improved_epoch,
            "scaler": self.scaler.state_dict(),
            "hooks": {type(hook).__name__: hook.state() for hook in self.hooks},
        }

    def restore(self, state: dict[str, Any], *, epoch: int) -> None:
        """Restore the state that `resumable_state` returned, so that `fit` continues after `epoch`."""
        self.state.epoch = epoch
        self.state.best_fitness, self.state.best_epoch = state["best_fitness"], state["best_epoch"]
        self.state.improved_epoch = state.get("improved_epoch", self.state.best_epoch)
        self.scaler.load_state_dict(state["scaler"])
        for hook in self.hooks:
            hook.restore(state["hooks"].get(type(hook).__name__, {}))

    def _train_epoch(self) -> None:
        epoch, batches = self.state.epoch, len(self.loader)
        seed_everything(self.settings.seed + epoch)
        self.loader.set_epoch(epoch)
        self.model.train()
        watch = LossWatch(epoch=epoch, names=tuple(self.loss.names))
        sizes = np.random.default_rng((self.settings.seed, epoch, 1))
        waiting = 0  # batches whose gradients are not applied yet
        started = time.perf_counter()
        for i, batch in enumerate(self._progress(watch)):
            number = epoch * batches + i
            self.schedule.apply_(self.optimizer, number)
            waiting += 1
            # No gradient is carried into the next epoch, so a checkpoint written in between is complete.
            is_step = waiting >= self.schedule.accumulation(number) or i + 1 == batches
            with self._synchronised(is_step):
                parts = self._forward_backward(batch, sizes)
            watch.add(parts, batch=i, lr=self.lr, images=batch.sources)
            if is_step:
                self._optimizer_step(waiting)
                waiting = 0
            self.state.images += len(batch) * self.process.world_size
        watch.check()
        self.state.losses = watch.mean()
        self.state.seconds += time.perf_counter() - started

    def _progress(self, watch: LossWatch) -> Iterator[TrainingBatch]:
        """Iterate over the loader, on the main process with a progress bar unless the settings exclude it."""
        if not (self.process.is_main and self.settings.has_progress):
            return iter(self.loader)

        def state() -> str:
            return f"{named_losses(watch.mean())} lr {self.lr:.2g}"

        return progress(self.loader, description=f"epoch {self.state.epoch + 1}/{self.settings.epochs}", state=state)

    def _synchronised(self, is_step: bool) -> AbstractContextManager[Any]:
        """Return a context in which processes exchange gradients only if an optimiser step follows."""
        if is_step or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def _forward_backward(self, batch: TrainingBatch, sizes: np.random.Generator) -> Tensor:
        """Add the gradients of one batch, and return the parts of its loss, (P,)."""
        batch, targets = batch.to(self.settings.device), batch.targets
        images = self._resized(batch.normalised(), sizes).contiguous(memory_format=torch.channels_last)
        with torch.autocast(
            self.settings.device.type, dtype=self.settings.autocast, enabled=self.settings.autocast is not None
        ):
            outputs = self._parallel(images)
        result = self.loss(outputs, targets)
        total = result.total
        for hook in self.hooks:
            total = hook.after_loss(self, Step(batch=batch, images=images, outputs=outputs, loss=total))
        self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        return result.parts

    def _resized(self, images: Tensor, sizes: np.random.Generator) -> Tensor:
        """Resize a batch to a size drawn from `settings.scales`, for multi-scale training."""
        if not self.settings.scales:
            return images
        size = int(sizes.choice(self.settings.scales))
        longest = max(images.shape[2:])
        if size == longest:
            return images
        stride = self.settings.stride
        height, width = (max(stride, round(side * size / longest / stride) * stride) for side in images.shape[2:])
        return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)

    def _optimizer_step(self, num_batches: int) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.settings.is_mean_of_batches and num_batches > 1:
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            torch._foreach_div_(gradients, float(num_batches))
        for hook in self.hooks:
            hook.gradients_ready(self)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        for hook in self.hooks:
            hook.weights_updated(self)
