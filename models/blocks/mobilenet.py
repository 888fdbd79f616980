"""The blocks of MobileNetV3.

Howard et al., "Searching for MobileNetV3", ICCV 2019.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.blocks.conv import Block, Conv, adds_shortcut
from models.widths import Width, Widths


class SqueezeExcite(nn.Module):
    """A gate on each channel, computed from the means of all channels."""

    def __init__(self, channels: Width, *, widths: Widths) -> None:
        super().__init__()
        # A quarter of the channels, rounded to a multiple of 8, as in the paper's reference networks.
        squeezed = widths.conv("fc1", max(8, (channels.nominal // 4 + 4) // 8 * 8))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels.actual, squeezed.actual, 1)
        self.relu = nn.ReLU()
        self.fc2 = nn.Conv2d(squeezed.actual, channels.actual, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a tensor of the same shape."""
        y: Tensor = x * self.gate(self.fc2(self.relu(self.fc1(self.pool(x)))))
        return y


class InvertedResidual(Block):
    """Widening 1x1, depthwise, gate and narrowing 1x1 convolution, with a shortcut where shapes agree.

    Args:
        cin: Input width.
        c2: Output channels.
        expanded: Channels in between; if equal to the input's, there is no widening convolution.
        k: Kernel size of the depthwise convolution.
        s: Stride of the depthwise convolution.
        act: Name in `ACTIVATIONS`; the suffix `-se` adds a gate, as in `relu-se`.
        widths: Actual widths; the depthwise convolution is as wide as its input.
    """

    def __init__(self, cin: Width, c2: int, expanded: int, k: int, s: int, act: str, *, widths: Widths) -> None:
        super().__init__()
        name = act.removesuffix("-se")
        has_expand = expanded != cin.nominal
        hidden = widths.conv("expand", expanded) if has_expand else cin
        self.expand = Conv(cin, hidden, act=name) if has_expand else nn.Identity()
        self.depthwise = Conv(hidden, hidden, k, s, g=hidden.actual, act=name)
        self.se = SqueezeExcite(hidden, widths=widths.scope("se")) if name != act else nn.Identity()
        self.project = Conv(hidden, widths.conv("project", c2), act=False)
        self.out = self.project.out
        self.add = adds_shortcut(cin, self.out, is_wanted=s == 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / s, W / s)."""
        y: Tensor = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.add else y
