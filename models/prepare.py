"""Preparation of a network for export: fold batch norms, make Focus a plain convolution, leave heads unreshaped.

The maps are (B, A * (5 + nc), H, W), the layout of a convolution: the reshape to (B, A, H, W, 5 + nc) has five
dimensions, which mobile runtimes do not support, and costs a copy. `ExportMetadata.raw_heads` does it outside.
"""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from models.blocks.conv import Focus
from models.blocks.head import Detect
from models.detector import Detector
from models.fuse import fuse


class ExportNetwork(nn.Module):
    """A detector that returns its head maps as a tuple, as tracers require.

    Args:
        detector: Fused network, used by nothing else; its head is replaced.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        detector.model[-1] = _HeadMaps.of(detector)
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) RGB in [0, 1] to head maps (B, A * (5 + nc), H / stride, W / stride)."""
        return tuple(self.detector(images))


class Logits(nn.Module):
    """A classifier in the form for exporters: a frozen float32 copy in evaluation mode that returns a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(model).float().cpu()
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Compute the logits (B, classes) of images (B, C, H, W), as a tuple of one."""
        return (self.classifier(images),)


class HalfNetwork(nn.Module):
    """A network that computes in float16 between float32 inputs and outputs, so that callers see no difference."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run the network in float16; inputs and outputs are those of the network, in float32."""
        return tuple(head_map.float() for head_map in self.network(images.half()))


class _HeadMaps(Detect):
    """The detection head without the reshape.

    It is a `Detect` because properties of the detector read it, and tracers read every property.
    """

    @classmethod
    def of(cls, detector: Detector) -> _HeadMaps:
        """Build the head from the convolutions of the detector's head."""
        spec, convs = detector.spec, detector.head.m
        in_channels = [conv.in_channels for conv in convs if isinstance(conv, nn.Conv2d)]
        maps = cls(num_classes=spec.num_classes, anchors=spec.anchors, strides=spec.strides, in_channels=in_channels)
        maps.m = convs
        return maps

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [conv(feature) for conv, feature in zip(self.m, features, strict=True)]


def ready_for_export(model: Detector) -> nn.Module:
    """Copy a network with the same outputs, made only of operators that every runtime supports.

    Args:
        model: Dense or pruned network; it is not changed.

    Returns:
        A network on the CPU, in float32 and evaluation mode, without gradients. It maps images (B, 3, H, W) RGB in
        [0, 1] to a tuple of head maps (B, A * (5 + nc), H / stride, W / stride), before the sigmoid.
    """
    fused = fuse(copy.deepcopy(model).float().cpu())
    for parent in list(fused.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Focus):
                setattr(parent, name, fold_focus(child))
    return ExportNetwork(fused).eval().requires_grad_(False)


def fold_focus(focus: Focus) -> nn.Sequential:
    """Turn Focus and its k x k convolution into one 2k x 2k convolution of stride 2.

    Focus puts pixel (2y + row, 2x + column) into channel group (column, row) at (y, x). A weight at (u, v) of that
    group is therefore the weight at (2u + row, 2v + column) of a kernel that moves by two pixels: the same values
    in another order. It is needed because pnnx cannot convert slices with steps.

    Args:
        focus: Focus whose batch norm is already folded.

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
    # These names become the names of exported layers.
    return nn.Sequential(OrderedDict(conv=folded, bn=focus.conv.bn, act=focus.conv.act))
