"""A quantised detector as evaluation takes it: raw heads, anchors and strides."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from models.detector import Detector


class QuantizedDetector:
    """The head maps of a quantised network, in the shape of a `Detector`'s.

    Args:
        maps: Images (B, 3, H, W) in [0, 1] to head maps (B, A * (5 + nc), H / stride, W / stride), such as a
            `QuantizedNetwork` made from `detector`.
        detector: What it was made from; gives anchors, strides and the number of classes.
    """

    def __init__(self, maps: Callable[[Tensor], Sequence[Tensor]], detector: Detector) -> None:
        self._maps = maps
        self._num_outputs = 5 + detector.spec.num_classes
        self.anchors = detector.anchors
        self.strides = detector.strides

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to raw heads (B, A, H / stride, W / stride, 5 + nc)."""
        heads = []
        for maps in self._maps(images):
            batch, channels, height, width = maps.shape
            split = maps.view(batch, channels // self._num_outputs, self._num_outputs, height, width)
            heads.append(split.permute(0, 1, 3, 4, 2))  # (B, A, H, W, 5 + nc)
        return heads
