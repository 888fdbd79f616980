"""The running mean of the losses, and the error when one is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from utils.errors import TrainingError

# Reading a value from a GPU makes the host wait, so there losses are checked in groups of this many.
_GPU_BUNDLE = 20
_IMAGES_NAMED = 4


def named_losses(losses: Mapping[str, float]) -> str:
    """Format losses for log lines: "box 0.0312 obj 0.0204"."""
    return " ".join(f"{name} {value:.4f}" for name, value in losses.items())


@dataclass
class LossWatch:
    """Accumulates the loss parts of one epoch on their device.

    Attributes:
        epoch: Index of the epoch, for the message.
        names: Names of the parts of the loss.
    """

    epoch: int
    names: tuple[str, ...]
    _total: Tensor | None = None
    _batches: int = 0
    _pending: list[tuple[Tensor, int, float, Sequence[str]]] = field(default_factory=list)

    def add(self, parts: Tensor, *, batch: int, lr: float, images: Sequence[str]) -> None:
        """Add the loss parts (P,) of a batch, with what to report if they are not finite.

        Raises:
            TrainingError: A loss of this batch, or of one shortly before it, is not finite.
        """
        self._total = parts.clone() if self._total is None else self._total + parts
        self._batches += 1
        self._pending.append((parts, batch, lr, images))
        if parts.device.type == "cpu" or len(self._pending) >= _GPU_BUNDLE:
            self.check()

    def check(self) -> None:
        """Check the losses added since the last check.

        Raises:
            TrainingError: One of them is not finite.
        """
        if not self._pending:
            return
        values = torch.stack([parts for parts, *_ in self._pending]).cpu()
        for row, (_, batch, lr, images) in zip(values, self._pending, strict=True):
            if not row.isfinite().all():
                named = ", ".join(images[:_IMAGES_NAMED]) + (", ..." if len(images) > _IMAGES_NAMED else "")
                parts = ", ".join(f"{name} {value:.4g}" for name, value in zip(self.names, row.tolist(), strict=True))
                raise TrainingError(
                    f"the loss is not finite ({parts}) in epoch {self.epoch}, batch {batch}, at learning rate "
                    f"{lr:.4g}, images {named}; the last good checkpoint is kept: lower lr0, or check these images "
                    "and their labels"
                )
        self._pending.clear()

    def mean(self) -> dict[str, float]:
        """Return the mean of each part of the loss over the batches so far, by name."""
        if self._total is None:
            return dict.fromkeys(self.names, 0.0)
        return dict(zip(self.names, (self._total / self._batches).tolist(), strict=True))
