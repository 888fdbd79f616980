"""The running mean of the losses, and the alarm when one is not finite."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from utils.errors import TrainingError

# Reading a value from a GPU makes the host wait, so losses are looked at in bundles there.
_GPU_BUNDLE = 20
_IMAGES_NAMED = 4


@dataclass
class LossWatch:
    """Collects the loss parts of one epoch on their device.

    Attributes:
        epoch: For the message.
    """

    epoch: int
    _total: Tensor | None = None
    _batches: int = 0
    _pending: list[tuple[Tensor, int, float, tuple[str, ...]]] = field(default_factory=list)

    def add(self, parts: Tensor, *, batch: int, lr: float, images: tuple[str, ...]) -> None:
        """Take the (3,) loss parts of a batch, with what to say should they not be finite.

        Raises:
            TrainingError: A loss of this batch, or of one shortly before it, is not finite.
        """
        self._total = parts.clone() if self._total is None else self._total + parts
        self._batches += 1
        self._pending.append((parts, batch, lr, images))
        if parts.device.type == "cpu" or len(self._pending) >= _GPU_BUNDLE:
            self.check()

    def check(self) -> None:
        """Look at the losses not looked at yet.

        Raises:
            TrainingError: One is not finite.
        """
        if not self._pending:
            return
        values = torch.stack([parts for parts, *_ in self._pending]).cpu()
        for row, (_, batch, lr, images) in zip(values, self._pending, strict=True):
            if not row.isfinite().all():
                named = ", ".join(images[:_IMAGES_NAMED]) + (", ..." if len(images) > _IMAGES_NAMED else "")
                box, obj, cls = row.tolist()
                raise TrainingError(
                    f"the loss is not finite (box {box:.4g}, objectness {obj:.4g}, class {cls:.4g}) in epoch "
                    f"{self.epoch}, batch {batch}, at learning rate {lr:.4g}, images {named}; the last good "
                    "checkpoint is kept: lower lr0, or look at these images and their labels"
                )
        self._pending.clear()

    def mean(self) -> list[float]:
        """Box, objectness and class loss, mean over the batches so far."""
        if self._total is None:
            return [0.0, 0.0, 0.0]
        values: list[float] = (self._total / self._batches).tolist()
        return values
