"""RePr: filters that say nothing new are dropped for a while, and come back as something else, as a hook.

Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019 (arXiv 1811.07275).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.config import TrainConfig
from engine.hooks import Hook
from engine.trainer import Trainer
from engine.training import HookFactory
from models.detector import Detector
from pruning.graph import ChannelGraph
from pruning.held_zeros import HeldZeros, clear_averages_
from pruning.ranked_filters import RankedLayer, Rows, most_overlapping, ranked_layers, zeros_of
from pruning.repr_record import ReprRecord
from pruning.revival import revive_
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

# Tells the numbers that new filters are drawn from apart from those that other parts draw for the same epoch.
_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class ReprSettings:
    """When filters are dropped, and how many.

    Attributes:
        s1: Epochs of a cycle in which all filters train.
        s2: Epochs after them in which the dropped ones are off.
        cycles: Times this is done; the rest of the run trains all filters.
        ratio: Share of the filters that may be dropped which are, in (0, 1).
    """

    s1: int = 20
    s2: int = 10
    cycles: int = 3
    ratio: float = 0.3

    def __post_init__(self) -> None:
        for name in ("s1", "s2", "cycles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"RePr {name} is {getattr(self, name)}: expected at least 1")
        if not 0 < self.ratio < 1:
            raise ConfigError(f"RePr ratio is {self.ratio}: expected a share between 0 and 1, such as 0.3")

    @property
    def last_epoch(self) -> int:
        """The first epoch (from 0) after all cycles."""
        return self.cycles * (self.s1 + self.s2)

    def is_off(self, epoch: int) -> bool:
        """Whether filters are off in an epoch (from 0)."""
        return epoch < self.last_epoch and epoch % (self.s1 + self.s2) >= self.s1

    def check_fits(self, epochs: int) -> None:
        """Refuse a run that would end before the filters that came back last have trained.

        Raises:
            ConfigError: It is too short.
        """
        if epochs <= self.last_epoch:
            raise ConfigError(
                f"RePr of {self.cycles} cycles of {self.s1} + {self.s2} epochs does not fit a run of {epochs}: "
                f"filters would end off or untrained; train for at least {self.last_epoch + 1} epochs or lower cycles"
            )


class ReprHook(Hook):
    """Drops the filters that overlap most, holds them at zero, and brings new ones back in their place.

    Filters change at the first optimiser step of an epoch, so that what was measured after the epoch before it, and
    is in its checkpoint, is the network that trained in it.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        settings: ReprSettings,
        folder: Path | None = None,
        image_chw: tuple[int, int, int] | None = None,
        is_plotting: bool = True,
    ) -> None:
        """Args: `folder` gets repr.json and the plots at the end; `image_chw` is as in `ChannelGraph.of`."""
        self.settings, self.folder, self.is_plotting = settings, folder, is_plotting
        self.layers: tuple[RankedLayer, ...] = ranked_layers(model, ChannelGraph.of(model, image_chw=image_chw))
        widths = {layer.name: model.get_parameter(f"{layer.name}.weight").shape[0] for layer in self.layers}
        self.record = ReprRecord(widths=widths)
        self.off: Rows = {}
        self.dropped: dict[str, Tensor] = {}  # filters (n, weights) as they were before they were dropped
        self._held: HeldZeros | None = None
        if not self._count():
            raise ConfigError(
                f"RePr ratio is {settings.ratio}: that is no filter of {self._num_filters()}; give a larger share"
            )

    def before_training(self, trainer: Trainer) -> None:
        """Check that the cycles fit the run; in a resumed one go on holding what is off."""
        self.settings.check_fits(trainer.settings.epochs)
        self.record.running = trainer.state
        if self.off:
            self._hold(trainer)

    def gradients_ready(self, trainer: Trainer) -> None:
        """Drop or bring back at the start of a stage; what is off has no gradient."""
        is_off = self.settings.is_off(trainer.state.epoch)
        if is_off and not self.off:
            self._drop(trainer)
        elif self.off and not is_off:
            self._bring_back(trainer)
        if self._held is not None:
            self._held.clear_gradients_()

    def weights_updated(self, trainer: Trainer) -> None:
        """Hold what is off at zero, whatever the optimiser did."""
        if self._held is not None:
            self._held.clear_weights_()
            self._held.restart_optimizer_(trainer.optimizer)

    def epoch_end(self, trainer: Trainer) -> None:
        """Report how many filters are off; validation comes later, so its numbers are of the epoch before."""
        trainer.state.extra |= {"repr/filters_off": float(self._num_off())}
        trainer.state.is_interim |= bool(self.off)
        self.record.note_metrics(trainer.state.metrics, epoch=trainer.state.epoch - 1)

    def end(self, trainer: Trainer) -> None:
        """Write repr.json, the map of filters over stages, and the curve."""
        self.record.note_metrics(trainer.state.metrics, epoch=trainer.state.epoch)
        if self.off:
            LOGGER.warning("RePr: training ended early with filters off; a longer --patience lets the cycles finish")
        if self.folder is not None and trainer.process.is_main:
            self.record.write(self.folder, settings=asdict(self.settings), is_plotting=self.is_plotting)

    def state(self) -> dict[str, Any]:
        """What is off, what it was, and the record."""
        off = {name: torch.from_numpy(rows) for name, rows in self.off.items()}
        return {"off": off, "dropped": self.dropped, "record": self.record.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it back."""
        if state:
            self.off = {name: rows.numpy() for name, rows in state["off"].items()}
            self.dropped = dict(state["dropped"])
            self.record.restore(state["record"])

    def _num_filters(self) -> int:
        return sum(len(layer.rows) for layer in self.layers)

    def _num_off(self) -> int:
        return sum(len(rows) for rows in self.off.values())

    def _count(self) -> int:
        """Filters to drop at a time."""
        return round(self.settings.ratio * self._num_filters())

    def _hold(self, trainer: Trainer) -> None:
        zeros = zeros_of(trainer.model, self.layers, self.off)
        self._held = HeldZeros(trainer.model, zeros)
        self._held.clear_weights_()
        self._held.restart_optimizer_(trainer.optimizer)
        clear_averages_(trainer, zeros)

    def _drop(self, trainer: Trainer) -> None:
        self.off = most_overlapping(trainer.model, self.layers, count=self._count())
        for name, rows in self.off.items():
            weight = trainer.model.get_parameter(f"{name}.weight").detach()
            self.dropped[name] = weight[torch.from_numpy(rows).to(weight.device)].flatten(1)
        self._hold(trainer)
        self.record.begin(self.off, epoch=trainer.state.epoch)
        sizes = self._num_off(), self._num_filters(), self.settings.s2
        LOGGER.info("RePr: %d of %d filters off for %d epochs", *sizes)

    def _bring_back(self, trainer: Trainer) -> None:
        assert self._held is not None
        generator = np.random.default_rng((trainer.settings.seed, trainer.state.epoch, _STREAM))
        layers = [layer for layer in self.layers if layer.name in self.off]
        orthogonal = sum(
            revive_(trainer.model, layer, self.off[layer.name], self.dropped[layer.name], generator=generator)
            for layer in layers
        )
        # New filters begin with the next batch: they had no part in this gradient, nor in what the optimiser knows.
        self._held.clear_gradients_()
        self._held.restart_optimizer_(trainer.optimizer)
        count = self._num_off()
        self.record.finish(epoch=trainer.state.epoch, orthogonal=orthogonal)
        self.off, self.dropped, self._held = {}, {}, None
        LOGGER.info("RePr: %d filters back, %d orthogonal, %d random", count, orthogonal, count - orthogonal)


def repr_hooks(settings: ReprSettings) -> HookFactory:
    """For `run_training`: a detector's training with RePr."""

    def make(model: Detector, config: TrainConfig, folder: Path) -> Sequence[Hook]:
        settings.check_fits(config.epochs)
        return [ReprHook(model, settings=settings, folder=folder, is_plotting=not config.noplots)]

    return make
