"""The one contract of every runtime. Decode and NMS are ours and shared: a runtime gives raw heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from utils.errors import ConfigError

# "integer" is arithmetic on integers of any bits alone; "int8" leaves to a runtime what it computes in floats.
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "integer"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """How a runtime uses the machine.

    Attributes:
        half: Compute in 16 bits where the device can.
        threads: Number of threads; None takes as many as torch. Torch itself has one number for the whole process.
        powersave: For ncnn, which cores of a phone or board: 0 all, 1 the small ones, 2 the big ones. One value for
            the whole process, the last one counts.
    """

    half: bool = False
    threads: int | None = None
    powersave: int = 0

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads {self.threads}: expected at least 1")
        if self.powersave not in (0, 1, 2):
            raise ConfigError(f"--powersave {self.powersave}: expected 0, 1 or 2")

    @property
    def num_threads(self) -> int:
        """The number of threads, decided."""
        return self.threads or torch.get_num_threads()


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
