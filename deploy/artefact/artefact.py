"""Runtime of any exported detector: checks sizes, splits batches to fit the graph, and reshapes heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from deploy.artefact.metadata import ExportMetadata
from utils.errors import ConfigError

# Function from images (B, 3, H, W) float32 in [0, 1] to head maps (B, A * (5 + nc), H / stride, W / stride).
RunGraph: TypeAlias = Callable[[Tensor], Sequence[Tensor]]


class ArtefactRuntime:
    """A loaded graph with the interface of `deploy.artefact.runtime.RuntimeModel`.

    Args:
        run: Function that runs the graph.
        metadata: Metadata of the artefact.
        path: Path of the artefact, for messages.
        device: Device of the images and heads.
    """

    def __init__(self, run: RunGraph, metadata: ExportMetadata, *, path: Path, device: torch.device) -> None:
        self._run = run
        self._path = path
        self.metadata = metadata
        self.device = device
        self.format = metadata.format
        self.precision = metadata.precision
        self.names = metadata.names
        self.num_classes = metadata.num_classes
        self.strides = metadata.strides
        self.anchors = metadata.anchor_tensor.to(device)
        self.input_hw = metadata.input_hw

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute raw heads, float32, of images (B, 3, H, W) RGB in [0, 1].

        Raises:
            ConfigError: The artefact does not take images of this size.
        """
        self._check_size(images)
        size = len(images) if self.metadata.dynamic else self.metadata.batch_size
        parts = [self._heads_of(part, size) for part in torch.split(images.to(self.device), size)]
        return [torch.cat(level) for level in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]

    def _heads_of(self, images: Tensor, size: int) -> list[Tensor]:
        """Compute raw heads of at most `size` images, in a batch filled up with black ones."""
        filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))
        heads = self.metadata.raw_heads(self._run(filled), where=self._path)
        return [head[: len(images)].to(self.device) for head in heads]

    def _check_size(self, images: Tensor) -> None:
        given = tuple(images.shape[2:])
        if self.input_hw not in (None, given):
            raise ConfigError(
                f"{self._path} takes images of height and width {self.input_hw} only, got {given}; "
                "give it images of that size, or export it with --dynamic"
            )
        # Not every runtime checks that the maps it joins have the same size.
        if any(side % max(self.strides) for side in given):
            raise ConfigError(
                f"{self._path}: got images of {given[0]}x{given[1]} pixels, "
                f"expected multiples of the stride {max(self.strides)}"
            )
