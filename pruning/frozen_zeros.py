"""Training with some weights held at exactly zero, from the start or more and more of them, as a hook."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from engine.hooks import Hook
from engine.trainer import Trainer
from pruning.held_zeros import HeldZeros, clear_averages_
from pruning.unstructured import Masks, UnstructuredSettings, check_masks, l1_masks
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)


def cubic_sparsity(progress: float, *, final: float, initial: float = 0.0) -> float:
    """Sparsity on the way from `initial` to `final`: fast at first, while there is much that does not matter.

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017 (arXiv
    1710.01878).

    Args:
        progress: Share of the way in time, taken as 0 below 0 and as 1 above 1.
        final: Share of zeros at the end.
        initial: And at the start.
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    return final + (initial - final) * left**3


@dataclass(frozen=True, kw_only=True)
class GradualPruning:
    """Sparsity that rises from epoch to epoch.

    Attributes:
        settings: Which weights go, and the sparsity at the end.
        begin: First epoch (from 0) with more zeros than `initial`.
        epochs: Over which sparsity rises: epoch `begin + epochs - 1` is the first that trains at the end's.
        initial: Sparsity before `begin`.
    """

    settings: UnstructuredSettings
    epochs: int
    begin: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        if self.begin < 0 or self.epochs < 1:
            raise ConfigError(
                f"gradual pruning from epoch {self.begin} over {self.epochs} epochs: expected at least 0 and 1"
            )
        if not 0 <= self.initial <= self.settings.sparsity:
            raise ConfigError(
                f"gradual pruning from sparsity {self.initial} to {self.settings.sparsity}: expected 0 or more, "
                "and no less at the end"
            )

    def sparsity_at(self, epoch: int) -> float:
        """Share of zeros an epoch (from 0) trains with."""
        progress = (epoch + 1 - self.begin) / self.epochs
        return cubic_sparsity(progress, final=self.settings.sparsity, initial=self.initial)


class FrozenZerosHook(Hook):
    """Holds weights at exactly zero through every step, in the network, the optimiser and the averaged weights.

    With `gradual`, more weights join them at the first optimiser step of an epoch, the smallest of that moment; what
    is zero once stays zero.
    """

    def __init__(self, masks: Masks, *, gradual: GradualPruning | None = None) -> None:
        """Args: `masks` are what stays from the start, empty for all."""
        self.masks: dict[str, Tensor] = dict(masks)
        self.gradual, self.sparsity = gradual, 0.0
        self._held: HeldZeros | None = None

    def before_training(self, trainer: Trainer) -> None:
        """Set what is to be zero to zero, in a resumed run what was.

        Raises:
            PruningError: The masks are of another network.
            ConfigError: The run ends before sparsity has risen to the end.
        """
        check_masks(trainer.model, self.masks)
        epochs = trainer.settings.epochs
        if self.gradual is not None and self.gradual.begin + self.gradual.epochs > epochs:
            last = self.gradual.begin + self.gradual.epochs
            raise ConfigError(
                f"gradual pruning ends after epoch {last}, the run after {epochs}; train longer or prune faster"
            )
        self._hold(trainer)

    def gradients_ready(self, trainer: Trainer) -> None:
        """Raise sparsity where it is time; what is held has no gradient."""
        if self.gradual is not None:
            self._raise(trainer, self.gradual)
        assert self._held is not None
        self._held.clear_gradients_()

    def weights_updated(self, trainer: Trainer) -> None:
        """Hold, whatever the optimiser did."""
        assert self._held is not None
        self._held.clear_weights_()
        self._held.restart_optimizer_(trainer.optimizer)

    def epoch_end(self, trainer: Trainer) -> None:
        """Report the share of zeros in the tensors that have masks."""
        total = sum(mask.numel() for mask in self.masks.values())
        zeros = sum(int((~mask).sum()) for mask in self.masks.values())
        trainer.state.extra |= {"sparsity/held_zeros": zeros / max(total, 1)}
        trainer.state.is_interim |= self.gradual is not None and self.sparsity < self.gradual.settings.sparsity

    def state(self) -> dict[str, Any]:
        """The masks and how far sparsity has risen."""
        return {"masks": self.masks, "sparsity": self.sparsity}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them back."""
        if state:
            self.masks, self.sparsity = dict(state["masks"]), state["sparsity"]

    def _raise(self, trainer: Trainer, gradual: GradualPruning) -> None:
        wanted = gradual.sparsity_at(trainer.state.epoch)
        if wanted <= self.sparsity:
            return
        self.sparsity = wanted
        settings = replace(gradual.settings, sparsity=wanted)
        self.masks |= l1_masks(trainer.model, settings, start=self.masks)
        self._hold(trainer)
        LOGGER.info("%.1f %% of weights are zero from now on", 100 * wanted)

    def _hold(self, trainer: Trainer) -> None:
        zeros = {name: ~mask for name, mask in self.masks.items()}
        self._held = HeldZeros(trainer.model, zeros)
        self._held.clear_weights_()
        self._held.restart_optimizer_(trainer.optimizer)
        clear_averages_(trainer, zeros)
