"""Training with simulated rounding: the task of a network, whose quantised form is what trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.training.distributed import Process
from engine.training.hooks import Hook
from engine.training.resuming import load_weights_
from engine.training.trainer import TrainingLoader, TrainingLoss
from pruning.features import Followed, Teaching
from pruning.zeros.masks import zero_masks
from quantization.network import QuantizedNetwork, uncalibrated
from tasks.settings import TaskSettings
from tasks.task import Data, Network, Recipe, Task
from utils.config.hyp import Hyp
from utils.errors import ConfigError
from utils.storage.checkpoint import Checkpoint, load_checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantisedTask:
    """A `Task` that trains the quantised form of a network; everything else is as in the task of that network.

    Attributes:
        task: Task of the network.
        floats: Network in floating point.
        quantised: Its quantised form, with the ranges and weights that a training begins with; a run that is resumed
            needs neither.
        learns: Whether scales train; else weights alone.
    """

    task: Task
    floats: Network
    quantised: QuantizedNetwork
    learns: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    @property
    def recipe(self) -> Recipe:
        """Recipe of the task; weights are written whole, since those in 16 bits would round to other integers."""
        return replace(self.task.recipe, is_half=False)

    def make_network(self, settings: TaskSettings, data: Data, *, hyp: Hyp) -> Network:
        """Quantise the network and make its scales trainable.

        Raises:
            ConfigError: The data has other classes than the network.
        """
        if tuple(data.names) != tuple(self.floats.names):
            raise ConfigError(
                f"--data {settings.data} has the classes {list(data.names)}, --weights {settings.weights} "
                f"{list(self.floats.names)}; give the data set it was trained on"
            )
        return self._trainable(self.quantised)

    def restored(self, checkpoint: Checkpoint, settings: TaskSettings, *, where: str) -> Network:
        """Rebuild the network of a run to resume."""
        own = self.quantised
        fresh = uncalibrated(self.floats.model, config=own.config, image_shape=own.image_shape, bits=own.bits)
        network = self._trainable(fresh)
        load_weights_(network.model, checkpoint, where=where)
        return network

    def load(self, path: str | Path) -> Network:
        """Read what a training has written."""
        checkpoint = load_checkpoint(path)
        return self.restored(replace(checkpoint, weights=checkpoint.best_weights), TaskSettings(), where=str(path))

    def settled(self, path: str | Path) -> QuantizedNetwork:
        """Return the quantised network that a training has written, its scales fixed."""
        quantised = _quantised_in(self.load(path).model)
        quantised.settle_scales_()
        return quantised

    def zero_masks(self) -> dict[str, Tensor]:
        """Return masks, by name of the parameter that trains, of the weights that are zero in floating point."""
        trained = self.task.quantised(self.quantised, self.floats)
        own = {id(parameter): name for name, parameter in trained.named_parameters()}
        masks = zero_masks(self.floats.model)
        found = {}
        for name in self.quantised.graph.layers:
            if f"{name}.weight" in masks:
                found[own[id(self.quantised.weights(name)[0])]] = masks[f"{name}.weight"]
        return found

    def _trainable(self, quantised: QuantizedNetwork) -> Network:
        quantised.mode = "fake"
        quantised.learn_scales_(learns=self.learns)
        return replace(self.floats, model=self.task.quantised(quantised, self.floats), checkpoint=None)

    def train_loader(
        self,
        settings: TaskSettings,
        network: Network,
        data: Data,
        *,
        hyp: Hyp,
        device: Any,
        process: Process,
    ) -> TrainingLoader:
        """Return the augmented batches of this process."""
        return self.task.train_loader(settings, self.floats, data, hyp=hyp, device=device, process=process)

    def loss(self, settings: TaskSettings, network: Network, *, hyp: Hyp, process: Process) -> TrainingLoss:
        """Return the loss of the network."""
        return self.task.loss(settings, self.floats, hyp=hyp, process=process)

    def scales(self, settings: TaskSettings, network: Network) -> range:
        """Return the image sizes of multi-scale training."""
        return self.task.scales(settings, self.floats)

    def distillation(self, teacher: str, network: Network, teaching: Teaching) -> Hook:
        """Return the hook with which the network learns from another's outputs, or from itself in floating point.

        Args:
            teacher: File of the teacher; "" for the network itself, whose features can be followed too.
            network: Network that trains.
            teaching: How much it learns; no plan is needed.
        """
        if teacher:
            return self.task.distillation(teacher, self.floats, teaching)
        own = self.quantised
        floats = uncalibrated(self.floats.model, config=own.config, image_shape=own.image_shape).requires_grad_(False)
        model = self.task.quantised(floats, self.floats)
        names = {id(module): name for name, module in model.named_modules()}
        followed = None
        if teaching.features:
            read = {
                names[id(floats.places[name])]: torch.arange(_num_read(floats, name))
                for name in floats.graph.weighted
            }
            followed = Followed(read=read, strength=teaching.features)
        return self.task.teaching_hook(model, strength=teaching.answers, followed=followed)


def _quantised_in(model: nn.Module) -> QuantizedNetwork:
    """Return the quantised network within a module that gives its outputs another shape."""
    return next(module for module in model.modules() if isinstance(module, QuantizedNetwork))


def _num_read(network: QuantizedNetwork, name: str) -> int:
    """Return the number of channels that a layer with weights reads."""
    groups = network.graph.nodes[name].settings.get("groups", 1)
    assert isinstance(groups, int)
    return network.weights(name)[0].shape[1] * groups
