"""The convolution blocks of YOLOv5, sized by the channels they actually receive and by the spec.

Attribute names are those of YOLOv5 checkpoints, because they are the file format.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.blocks.conv import Block, Conv, adds_shortcut, batch_norm
from models.widths import Width, Widths
from utils.errors import ConfigError


class Bottleneck(Block):
    """A 1x1 and a 3x3 convolution, with a shortcut where the layer list makes input and output equally wide."""

    def __init__(
        self, cin: Width, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5, *, widths: Widths
    ) -> None:
        super().__init__()
        self.cv1 = Conv(cin, widths.conv("cv1", int(c2 * e)))
        self.cv2 = Conv(self.cv1.out, widths.conv("cv2", c2), 3, g=g)
        self.out = self.cv2.out
        self.add = adds_shortcut(cin, self.out, is_wanted=shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        y: Tensor = self.cv2(self.cv1(x))
        return x + y if self.add else y


def _bottlenecks(cin: Width, n: int, shortcut: bool, g: int, *, widths: Widths) -> tuple[nn.Sequential, Width]:
    """Build a chain of `n` bottlenecks of constant nominal width; return it and its output width.

    With `n` = 0 the chain is an identity.
    """
    blocks: list[Bottleneck] = []
    width = cin
    for index in range(n):
        block = Bottleneck(width, cin.nominal, shortcut, g, 1.0, widths=widths.scope(str(index)))
        blocks.append(block)
        width = block.out
    return nn.Sequential(*blocks), width


class C3(Block):
    """Cross-stage partial block with three convolutions; only one half passes through bottlenecks."""

    def __init__(
        self,
        cin: Width,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        *,
        widths: Widths,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(cin, widths.conv("cv1", hidden))
        self.cv2 = Conv(cin, widths.conv("cv2", hidden))
        self.m, inner = _bottlenecks(self.cv1.out, n, shortcut, g, widths=widths.scope("m"))
        self.cv3 = Conv(inner + self.cv2.out, widths.conv("cv3", c2))
        self.out = self.cv3.out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        y: Tensor = self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        return y


class BottleneckCSP(Block):
    """The older cross-stage partial block: bare convolutions before the join, one batch norm after it."""

    def __init__(
        self,
        cin: Width,
        c2: int,
        n: int = 1,
        shortcut: bool = True,
        g: int = 1,
        e: float = 0.5,
        *,
        widths: Widths,
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(cin, widths.conv("cv1", hidden))
        self.m, inner = _bottlenecks(self.cv1.out, n, shortcut, g, widths=widths.scope("m"))
        side, main = widths.conv("cv2", hidden), widths.conv("cv3", hidden)
        self.cv2 = nn.Conv2d(cin.actual, side.actual, 1, bias=False)
        self.cv3 = nn.Conv2d(inner.actual, main.actual, 1, bias=False)
        self.bn = batch_norm((main + side).actual)
        self.act = nn.LeakyReLU(0.1)
        self.cv4 = Conv(main + side, widths.conv("cv4", c2))
        self.out = self.cv4.out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        joined = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        y: Tensor = self.cv4(self.act(self.bn(joined)))
        return y


class SPP(Block):
    """Spatial pyramid pooling: the map concatenated with its maxima over windows of several sizes.

    The large windows are computed as a chain of small ones, which gives the same values faster: the maximum over
    5 cells of maxima over 5 cells is the maximum over 9.
    """

    def __init__(self, cin: Width, c2: int, k: Sequence[int] = (5, 9, 13), *, widths: Widths) -> None:
        super().__init__()
        if any(size % 2 == 0 for size in k) or list(k) != sorted(set(k)):
            raise ConfigError(f"SPP windows are {list(k)}, expected odd sizes in ascending order")
        self.cv1 = Conv(cin, widths.conv("cv1", cin.nominal // 2))
        steps = [size - smaller + 1 for size, smaller in zip(k, [1, *k[:-1]], strict=True)]
        self.m = nn.ModuleList(nn.MaxPool2d(step, stride=1, padding=step // 2) for step in steps)
        joined = self.cv1.out
        for _ in k:
            joined = joined + self.cv1.out
        self.cv2 = Conv(joined, widths.conv("cv2", c2))
        self.out = self.cv2.out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        maps = [self.cv1(x)]
        for pool in self.m:
            maps.append(pool(maps[-1]))
        y: Tensor = self.cv2(torch.cat(maps, 1))
        return y


class SPPF(Block):
    """The v6 form of SPP: the same pooling window applied three times in a chain."""

    def __init__(self, cin: Width, c2: int, k: int = 5, *, widths: Widths) -> None:
        super().__init__()
        self.cv1 = Conv(cin, widths.conv("cv1", cin.nominal // 2))
        hidden = self.cv1.out
        self.cv2 = Conv(hidden + hidden + hidden + hidden, widths.conv("cv2", c2))
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)
        self.out = self.cv2.out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H, W)."""
        first = self.cv1(x)
        second = self.m(first)
        third = self.m(second)
        y: Tensor = self.cv2(torch.cat((first, second, third, self.m(third)), 1))
        return y


class Concat(nn.Module):
    """Concatenation of maps along one dimension."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.dimension = dimension

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Concatenate [(B, C1, H, W), (B, C2, H, W), ...] to (B, C1 + C2 + ..., H, W)."""
        return torch.cat(maps, self.dimension)
