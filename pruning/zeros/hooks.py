"""Train with some weights kept at exactly zero, from the start or gradually more of them, as a hook."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from engine.training.hooks import Hook
from engine.training.trainer import Trainer
from pruning.zeros.held import HeldZeros, clear_averages_
from pruning.zeros.masks import Masks, UnstructuredSettings, check_masks, l1_masks
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)


def cubic_sparsity(progress: float, *, final: float, initial: float = 0.0) -> float:
    """Return the sparsity between `initial` and `final`, which rises fast at first, while many weights are redundant.

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017 (arXiv
    1710.01878).

    Args:
        progress: Share of the time that has passed, clamped to [0, 1].
        final: Share of zeros at the end.
        initial: Share of zeros at the start.
    """
    left = 1 - min(max(progress, 0.0), 1.0)
    return final + (initial - final) * left**3


@dataclass(frozen=True, kw_only=True)
class GradualPruning:
    """Sparsity that rises from epoch to epoch.

    Attributes:
        settings: Choice of the weights to prune, and the sparsity at the end.
        epochs: Epochs over which sparsity rises; epoch `begin + epochs - 1` is the first with the final sparsity.
        begin: First epoch (from 0) with more zeros than `initial`.
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
        """Return the share of zeros in an epoch (from 0)."""
        progress = (epoch + 1 - self.begin) / self.epochs
        return cubic_sparsity(progress, final=self.settings.sparsity, initial=self.initial)


class FrozenZerosHook(Hook):
    """Keeps weights at exactly zero through every step, in the network, the optimiser and the averaged weights.

    With `gradual`, more weights are zeroed at the first optimiser step of an epoch, the smallest at that moment;
    zeroed weights remain zero.
    """

    def __init__(self, masks: Masks, *, gradual: GradualPruning | None = None) -> None:
        """Take the masks of the weights to keep from the start; empty keeps all."""
        self.masks: dict[str, Tensor] = dict(masks)
        self.gradual, self.sparsity = gradual, 0.0
        self._held: HeldZeros | None = None

    def before_training(self, trainer: Trainer) -> None:
        """Zero the masked weights; in a resumed run those that were zero before.

        Raises:
            PruningError: The masks are for another network.
            ConfigError: The run ends before the final sparsity is reached.
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
        """Raise the sparsity if it is due, and clear the gradients of the zeroed weights."""
        if self.gradual is not None:
            self._raise(trainer, self.gradual)
        assert self._held is not None
        self._held.clear_gradients_()

    def weights_updated(self, trainer: Trainer) -> None:
        """Set the zeroed weights back to zero after the optimiser step."""
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
        """Return the masks and the current sparsity."""
        return {"masks": self.masks, "sparsity": self.sparsity}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the masks and the sparsity from `state`."""
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
