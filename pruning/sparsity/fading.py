"""Sparsity training without a strength: channels are chosen first, and their scales and shifts fade to zero.

A penalty draws all scales alike, and whether enough of them arrive at zero depends on the data set, the length of
the run and its learning rates. Here the channels to prune are known before, and scale and shift follow a line to
zero, as a share of the run: at its end they are at zero whatever the data, and the other channels were never drawn.
The loss is minimised all along, so that the others take over what fades. Choosing first and pressing only on the
chosen ones is the idea of Wang et al., "Neural Pruning via Growing Regularization", ICLR 2021 (arXiv 2012.09243);
they let a penalty grow, which again needs a strength.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.training.distributed import share
from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import IntArray
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from pruning.zeros.held import clear_averages_
from utils.errors import PruningError

LOGGER = logging.getLogger(__name__)

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]

# Share of the run at which the chosen channels are at zero. The rest of it wins back what fading cost: with .4 in
# place of .75 mAP before the cut was .533, not .516 (dense .570), and alike after fine-tuning; see docs/sparsity.md.
_END = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class Fading:
    """The chosen channels of one batch norm.

    Attributes:
        layer: Path of the batch norm.
        norm: The batch norm.
        channels: Indices of the chosen channels (n,).
        scale, shift: Their values when they were chosen (n,).
    """

    layer: str
    norm: _BatchNorm
    channels: Tensor
    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, model: nn.Module, layer: str, chosen: Mask) -> Fading:
        """Take the present scale and shift of the chosen channels (C,) of a batch norm."""
        norm = model.get_submodule(layer)
        assert isinstance(norm, _BatchNorm)
        channels = torch.from_numpy(np.flatnonzero(chosen)).to(norm.weight.device)
        scale, shift = norm.weight.detach()[channels].clone(), norm.bias.detach()[channels].clone()
        return cls(layer=layer, norm=norm, channels=channels, scale=scale, shift=shift)

    @torch.no_grad()
    def set_(self, left: float) -> None:
        """Set scale and shift to a share, 0 to 1, of what they were."""
        self.norm.weight[self.channels] = left * self.scale
        self.norm.bias[self.channels] = left * self.shift

    @property
    def zeros(self) -> dict[str, Tensor]:
        """Masks (C,) of the chosen channels by name of scale and shift, as in `pruning.zeros.held`."""
        mask = torch.zeros_like(self.norm.weight, dtype=torch.bool)
        mask[self.channels] = True
        return {f"{self.layer}.weight": mask, f"{self.layer}.bias": mask}


def fadings(model: nn.Module, graph: ChannelGraph, dropped: IntArray) -> tuple[Fading, ...]:
    """Return the chosen channels of every batch norm that has some.

    Args:
        model: Network that trains.
        graph: Channels of the network.
        dropped: Ids of the chosen channels (n,).

    Raises:
        PruningError: A chosen channel passes no batch norm, so it has no scale that could fade.
    """
    norms = [layer for layer in graph.layers.values() if layer.is_norm]
    missed = np.setdiff1d(dropped, _normed_ids(graph))
    if len(missed):
        layer, _ = graph.owners(int(missed[0]))[0]
        raise PruningError(
            f"layer {layer} has no batch norm, so its channels have no scales that could fade; keep it"
        )
    chosen = {layer.name: np.isin(layer.output_ids, dropped) for layer in norms}
    return tuple(Fading.of(model, name, mask) for name, mask in chosen.items() if mask.any())


def layers_without_norm(graph: ChannelGraph) -> tuple[str, ...]:
    """Return the paths of the layers some of whose channels pass no batch norm: they have no scales to fade."""
    normed = _normed_ids(graph)
    return tuple(layer.name for layer in graph.layers.values() if not np.isin(layer.output_ids, normed).all())


def _normed_ids(graph: ChannelGraph) -> IntArray:
    ids = [layer.output_ids for layer in graph.layers.values() if layer.is_norm]
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *ids]))


def share_left(progress: float) -> float:
    """Return the share of their scale that chosen channels have at a progress of the run, 0 to 1."""
    return max(0.0, 1.0 - progress / _END)


class FadingHook(Hook):
    """Chooses channels before the first step, and fades them to zero.

    The plan of the cut is written to the run folder, for `prune.py --plan`. Scales and shifts are set after each
    step, so the optimiser does not move them; those of moving averages are at zero from the step at which these are.

    Attributes:
        plan: Channels that stay; None until they are chosen.
    """

    def __init__(
        self,
        model: nn.Module,
        choose: Callable[[], PruningPlan],
        *,
        folder: Path,
        image_chw: tuple[int, int, int] | None = None,
    ) -> None:
        """Create the hook.

        Args:
            model: Network that trains.
            choose: Function that makes the plan; it is called once, on the first process.
            folder: Run folder.
            image_chw: Image size, as in `ChannelGraph.of`.
        """
        self.plan: PruningPlan | None = None
        self._model, self._choose, self._folder = model, choose, folder
        self._graph = ChannelGraph.of(model, image_chw=image_chw)
        self._fadings: tuple[Fading, ...] = ()
        self._restored: Mapping[str, Any] = {}
        self._updates = 0

    def before_training(self, trainer: Trainer) -> None:
        """Choose, or take what a resumed run chose."""
        if self.plan is None:
            self.plan = share(self._choose() if trainer.process.is_main else None)
            assert self.plan is not None
            if trainer.process.is_main:
                self.plan.save(self._folder / PLAN_NAME)
        dropped = self.plan.dropped_ids(self._model, self._graph)
        self._fadings = tuple(
            replace(fading, **self._restored[fading.layer]) if fading.layer in self._restored else fading
            for fading in fadings(self._model, self._graph, dropped)
        )

    def weights_updated(self, trainer: Trainer) -> None:
        """Set the chosen channels to their share, averages included once it is zero."""
        self._updates += 1
        left = share_left(self._updates / trainer.schedule.total_updates)
        for fading in self._fadings:
            fading.set_(left)
        if left == 0:
            clear_averages_(trainer, {name: mask for fading in self._fadings for name, mask in fading.zeros.items()})

    def epoch_end(self, trainer: Trainer) -> None:
        """Report how far the chosen channels are; before they are at zero, an epoch cannot be the best."""
        left = share_left(self._updates / trainer.schedule.total_updates)
        trainer.state.is_interim |= left > 0
        trainer.state.extra["sparsity/left"] = left
        LOGGER.info("the chosen channels are at %s", f"{left:.0%} of their scale" if left else "zero")

    def state(self) -> dict[str, Any]:
        """Return plan, progress, and scales and shifts before fading."""
        before = {fading.layer: {"scale": fading.scale, "shift": fading.shift} for fading in self._fadings}
        return {"plan": self.plan and self.plan.to_dict(), "updates": self._updates, "before": before}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        if state:
            self.plan = PruningPlan.from_dict(state["plan"], where="checkpoint")
            self._updates, self._restored = int(state["updates"]), state["before"]
