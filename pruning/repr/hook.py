"""RePr as a training hook: redundant filters are dropped for a while and come back with new values.

Prakash et al., "RePr: Improved Training of Convolutional Filters", CVPR 2019 (arXiv 1811.07275).
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.repr.orthogonality import new_filters
from pruning.repr.ranked_filters import RankedLayer, Rows, most_overlapping, ranked_layers, weight_of, zeros_of
from pruning.repr.record import ReprRecord
from pruning.repr.settings import ReprSettings
from pruning.zeros.held import HeldZeros, clear_averages_
from utils.errors import ConfigError

# Revived batch-norm channels: factors and divisors get the mean over the kept channels, since the new filters have
# the mean norm of the others, or 1, as in a new batch norm, if none was kept; additive values remain zero.
_FROM_OTHERS = ("weight", "running_var")


@torch.no_grad()
def revive_(
    model: nn.Module, layer: RankedLayer, rows: IntArray, dropped: Tensor, *, generator: np.random.Generator
) -> int:
    """Give the zeroed filters of a layer, and their batch norms, new values.

    Args:
        model: Network, changed in place.
        layer: Layer of the filters.
        rows: Indices of the filters that are off (n,).
        dropped: Values of these filters before they were dropped (n, weights).
        generator: Generator that the directions are drawn from.

    Returns:
        Number of new filters that are orthogonal to all others of the layer and to the dropped ones.
    """
    weight = weight_of(model, layer.name)
    others = torch.from_numpy(np.setdiff1d(np.arange(len(weight)), rows)).to(weight.device)
    made, num_orthogonal = new_filters(weight[others].flatten(1), dropped, generator=generator)
    weight[torch.from_numpy(rows).to(weight.device)] = made.view(-1, *weight.shape[1:]).to(weight)
    for name, sources in layer.norms.items():
        norm = model.get_submodule(name)
        is_back = np.isin(sources, rows)
        back, stayed = (torch.from_numpy(np.flatnonzero(mask)) for mask in (is_back, (sources >= 0) & ~is_back))
        for key in _FROM_OTHERS:
            values = getattr(norm, key)
            if values is not None:
                values[back.to(values.device)] = values[stayed.to(values.device)].mean() if len(stayed) else 1.0
    return num_orthogonal


LOGGER = logging.getLogger(__name__)

# Seed component that separates these random numbers from those that other parts draw for the same epoch.
_STREAM = 2


class ReprHook(Hook):
    """Drops the filters that overlap most, keeps them at zero, and later replaces them by new ones.

    Filters change at the first optimiser step of an epoch, so that validation and checkpoint of the epoch before
    show the network that trained in that epoch.
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
        """Choose the filters that can be dropped.

        Args:
            model: Network that trains.
            settings: When to drop filters, and how many.
            folder: Folder for repr.json and the plots at the end; None writes nothing.
            image_chw: Image size, as in `ChannelGraph.of`.
            is_plotting: Whether to draw the plots.

        Raises:
            ConfigError: The ratio amounts to no filter.
            PruningError: The network has no filter that may be dropped.
        """
        self.settings, self.folder, self.is_plotting = settings, folder, is_plotting
        self.layers: tuple[RankedLayer, ...] = ranked_layers(model, ChannelGraph.of(model, image_chw=image_chw))
        widths = {layer.name: model.get_parameter(f"{layer.name}.weight").shape[0] for layer in self.layers}
        self.record = ReprRecord(widths=widths)
        self.off: Rows = {}
        self.dropped: dict[str, Tensor] = {}  # filters (n, weights) as they were before they were dropped
        self._held: HeldZeros | None = None
        if not self._count():
            raise ConfigError(
                f"RePr ratio is {settings.ratio}: that drops 0 of {self._num_filters()} filters; give a larger share"
            )

    def before_training(self, trainer: Trainer) -> None:
        """Check that the cycles fit the run; in a resumed run zero the filters that are off again."""
        self.settings.check_fits(trainer.settings.epochs)
        self.record.running = trainer.state
        if self.off:
            self._hold(trainer)

    def gradients_ready(self, trainer: Trainer) -> None:
        """Drop filters or bring them back at the start of a stage, and clear the gradients of those that are off."""
        is_off = self.settings.is_off(trainer.state.epoch)
        if is_off and not self.off:
            self._drop(trainer)
        elif self.off and not is_off:
            self._bring_back(trainer)
        if self._held is not None:
            self._held.clear_gradients_()

    def weights_updated(self, trainer: Trainer) -> None:
        """Set the filters that are off back to zero after the optimiser step."""
        if self._held is not None:
            self._held.clear_weights_()
            self._held.restart_optimizer_(trainer.optimizer)

    def epoch_end(self, trainer: Trainer) -> None:
        """Report how many filters are off, and record the metrics of the epoch before, validated since."""
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
        """Return the filters that are off, their values before, and the record."""
        off = {name: torch.from_numpy(rows) for name, rows in self.off.items()}
        return {"off": off, "dropped": self.dropped, "record": self.record.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the filters that are off, their values before, and the record from `state`."""
        if state:
            self.off = {name: rows.numpy() for name, rows in state["off"].items()}
            self.dropped = dict(state["dropped"])
            self.record.restore(state["record"])

    def _num_filters(self) -> int:
        return sum(len(layer.rows) for layer in self.layers)

    def _num_off(self) -> int:
        return sum(len(rows) for rows in self.off.values())

    def _count(self) -> int:
        """Return the number of filters to drop in each cycle."""
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
        # New filters start with the next batch: they had no part in this gradient, nor in the optimiser's state.
        self._held.clear_gradients_()
        self._held.restart_optimizer_(trainer.optimizer)
        count = self._num_off()
        self.record.finish(epoch=trainer.state.epoch, orthogonal=orthogonal)
        self.off, self.dropped, self._held = {}, {}, None
        LOGGER.info("RePr: %d filters back, %d orthogonal, %d random", count, orthogonal, count - orthogonal)
