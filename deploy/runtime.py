"""The one contract of every runtime. Decode and NMS are ours and shared: a runtime gives raw heads."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]


class RuntimeModel(Protocol):
    """A loaded artefact.

    Attributes:
        format: Key of `deploy.registry.RUNTIMES` that loaded it, such as ".pt".
        precision: What it computes in.
        device: Where it computes.
        names: Class names by id.
        num_classes: Their number.
        anchors: (levels, A, 2) widths and heights in pixels.
        strides: Pixels per cell of each level.
        input_hw: The one input height and width it takes, None for any multiple of the largest stride.
    """

    format: str
    precision: Precision
    device: torch.device
    names: tuple[str, ...]
    num_classes: int
    anchors: Tensor
    strides: tuple[int, ...]
    input_hw: tuple[int, int] | None

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) RGB in [0, 1] to one (B, A, h, w, 5 + nc) tensor per level, before the sigmoid."""
