"""The network as it is exported: batch norms folded, Focus a plain convolution, heads not yet reshaped.

The maps are (B, A * (5 + nc), H, W), the layout of a convolution: the reshape to (B, A, H, W, 5 + nc) is five
dimensional, which mobile runtimes do not know, and costs a copy. `ExportMetadata.raw_heads` does it outside.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.conv import Focus
from models.detector import Detector
from models.fuse import fuse
from models.head import Detect


class ExportNetwork(nn.Module):
    """A detector that gives its head maps as a tuple, as tracers want it.

    Args:
        detector: A fused network that nobody else uses; its head is replaced.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        detector.model[-1] = _HeadMaps.of(detector)
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) RGB in [0, 1] to head maps (B, A * (5 + nc), H / stride, W / stride)."""
        return tuple(self.detector(images))


class HalfNetwork(nn.Module):
    """A network that computes in float16 behind float32 inputs and outputs, so that callers need not care."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the network's own."""
        return tuple(head_map.float() for head_map in self.network(images.half()))


class _HeadMaps(Detect):
    """The detection head without the reshape.

    A `Detect`, for the properties of the detector read it, and tracers read every property.
    """

    @classmethod
    def of(cls, detector: Detector) -> _HeadMaps:
        """With the convolutions of the detector's head."""
        spec, convs = detector.spec, detector.head.m
        in_channels = [conv.in_channels for conv in convs if isinstance(conv, nn.Conv2d)]
        maps = cls(num_classes=spec.num_classes, anchors=spec.anchors, strides=spec.strides, in_channels=in_channels)
        maps.m = convs
        return maps

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [conv(feature) for conv, feature in zip(self.m, features, strict=True)]


def ready_for_export(model: Detector) -> nn.Module:
    """A copy of a network made of what every runtime knows, with the same numbers.

    Args:
        model: Dense or pruned; not touched.

    Returns:
        On the CPU, float32, evaluation mode, no gradients: images (B, 3, H, W) RGB in [0, 1] to a tuple of head
        maps (B, A * (5 + nc), H / stride, W / stride), before the sigmoid.
    """
    fused = fuse(copy.deepcopy(model).float().cpu())
    for parent in list(fused.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Focus):
                setattr(parent, name, fold_focus(child))
    return ExportNetwork(fused).eval().requires_grad_(False)


def fold_focus(focus: Focus) -> nn.Sequential:
    """Focus and its k x k convolution as one 2k x 2k convolution of stride 2.

    Focus puts pixel (2y + row, 2x + column) into channel group (column, row) at (y, x). A weight at (u, v) of that
    group is therefore the weight at (2u + row, 2v + column) of a kernel that moves by two pixels: only an order of
    the same numbers. Slices with steps are what pnnx cannot convert.

    Args:
        focus: With its batch norm already folded.

    Returns:
        The convolution and its activation.
    """
    conv = focus.conv.conv
    height, width = (2 * side for side in conv.kernel_size)
    folded = nn.Conv2d(
        conv.in_channels // 4,
        conv.out_channels,
        (height, width),
        stride=2,
        padding=tuple(2 * int(side) for side in conv.padding),  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    grouped = conv.weight.detach().view(
        conv.out_channels, 2, 2, folded.in_channels, *conv.kernel_size
    )  # (O, column, row, C, u, v)
    with torch.no_grad():
        folded.weight.copy_(grouped.permute(0, 3, 4, 2, 5, 1).reshape(folded.weight.shape))
        if conv.bias is not None and folded.bias is not None:
            folded.bias.copy_(conv.bias)
    # Named, for the names of exported layers come from here.
    return nn.Sequential(OrderedDict(conv=folded, bn=focus.conv.bn, act=focus.conv.act))
