"""The interface of runtimes: detectors return raw heads, for shared decoding and NMS; classifiers return logits."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from deploy.choices import Precision
from deploy.outputs.heads import ExportMetadata
from deploy.outputs.logits import LogitsRuntime


class DetectorRuntime(Protocol):
    """A loaded detector.

    Attributes:
        metadata: Metadata of the artefact.
        format: Suffix of its format in `deploy.formats.FORMATS`, such as ".pt".
        precision: Precision that it computes in.
        device: Device that it computes on.
        names: Class names by id.
        num_classes: Number of classes.
        anchors: Widths and heights (levels, A, 2), in pixels.
        strides: Pixels per cell of each level.
        input_hw: Height and width of the only images that it takes; None for any multiple of the largest stride.
    """

    metadata: ExportMetadata
    format: str
    precision: Precision
    device: torch.device
    names: tuple[str, ...]
    num_classes: int
    anchors: Tensor
    strides: tuple[int, ...]
    input_hw: tuple[int, int] | None

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute raw heads of images (B, 3, H, W) RGB in [0, 1].

        Returns:
            One head (B, A, h, w, 5 + nc) per level, before the sigmoid.
        """


# A loaded artefact of either task.
RuntimeModel: TypeAlias = DetectorRuntime | LogitsRuntime
