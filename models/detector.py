"""`Detector`: the network of a layer list, with the same outputs in training and evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.anchors import anchors_in_cells
from models.blocks.head import Detect
from models.builder import build_layers
from models.layer_table import MODULE_RULES
from models.spec import ModelSpec
from utils.errors import ConfigError


class Detector(nn.Module):
    """A YOLOv5-style network.

    Attributes:
        spec: Description that the network was built from; it alone suffices to rebuild it.
        model: Layers; index i gives the prefix `model.i` of parameter names.
        sources: Absolute indices of the layers that each layer reads; -1 is the image.
    """

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.model = build_layers(spec)
        self.sources = tuple(layer.sources(index) for index, layer in enumerate(spec.layers))
        last_reader = {source: index for index, sources in enumerate(self.sources) for source in sources}
        # Maps that no layer after i reads; dropping them bounds memory at inference.
        self._done_after = tuple(
            tuple(source for source, reader in last_reader.items() if reader == index)
            for index in range(len(self.sources))
        )

    @property
    def head(self) -> Detect:
        """Detection head, the last layer."""
        head = self.model[-1]
        assert isinstance(head, Detect)
        return head

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels per cell of each head."""
        return self.spec.strides

    @property
    def max_stride(self) -> int:
        """Largest stride in pixels; image sides must be multiples of it."""
        return self.spec.max_stride

    @property
    def anchors(self) -> Tensor:
        """Anchor widths and heights (heads, A, 2) in pixels, on the device of the network."""
        cells = self.head.anchors
        return cells * torch.tensor(self.strides, dtype=cells.dtype, device=cells.device).view(-1, 1, 1)

    def set_anchors_(self, anchors: Tensor) -> None:
        """Replace the anchors, in the network and in its spec.

        Args:
            anchors: Widths and heights (heads, A, 2) in pixels.

        Raises:
            ValueError: The shape differs from that of the current anchors.
        """
        if anchors.shape != self.head.anchors.shape:
            raise ValueError(f"anchors: got {tuple(anchors.shape)}, expected {tuple(self.head.anchors.shape)}")
        rows = tuple(tuple(row) for row in anchors.detach().cpu().double().flatten(1).tolist())
        self.spec = replace(self.spec, anchors=rows)
        self.head.anchors.copy_(anchors_in_cells(rows, self.strides))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, 3, H, W) RGB in [0, 1] to raw heads (B, A, H / stride, W / stride, 5 + nc)."""
        outputs: dict[int, Tensor] = {-1: images}
        result: list[Tensor] = []
        for index, (layer, sources) in enumerate(zip(self.model, self.sources, strict=True)):
            inputs = [outputs[source] for source in sources]
            if index == len(self.sources) - 1:
                result = layer(inputs)
            else:
                is_join = MODULE_RULES[self.spec.layers[index].module].is_join
                outputs[index] = layer(inputs if is_join else inputs[0])
            for source in self._done_after[index]:
                del outputs[source]
        return result


def build_model(spec: ModelSpec) -> Detector:
    """Build and initialise the network that `spec` describes."""
    return Detector(spec)


def freeze_(model: Detector, freeze: tuple[int, ...]) -> None:
    """Keep the weights of the first `freeze[0]` layers, or of the listed layers, as they are.

    Raises:
        ConfigError: There is no such layer.
    """
    count = len(model.model)
    frozen: Iterable[int] = range(freeze[0]) if len(freeze) == 1 else freeze
    if any(number < 0 for number in freeze) or any(number >= count for number in frozen):
        given = " ".join(map(str, freeze))
        raise ConfigError(f"--freeze {given}: the network has layers 0 to {count - 1}; give fewer or smaller numbers")
    for number in frozen:
        model.model[number].requires_grad_(False)
