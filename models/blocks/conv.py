"""The convolution that every block is made of, with YOLOv5's batch-norm constants and activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.widths import Width, Widths
from utils.errors import ConfigError

# Every YOLOv5 checkpoint was trained with these values; torch's defaults cost several points of mAP.
BN_EPS = 1e-3
BN_MOMENTUM = 0.03

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "hardswish": nn.Hardswish,
    "none": nn.Identity,
}


class Block(nn.Module):
    """A module that knows its number of output channels."""

    out: Width

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return self.out.actual


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Build a batch norm with YOLOv5's epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


def activation(name: bool | str) -> nn.Module:
    """Build an activation by name; True is SiLU and False is none, as in v5.0 YAMLs.

    Not in place: autograd would have to copy the input of SiLU first.

    Raises:
        ConfigError: The name is unknown.
    """
    key = {True: "silu", False: "none"}.get(name, name) if isinstance(name, bool) else name
    if key not in ACTIVATIONS:
        raise ConfigError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(key)]()


class Conv(Block):
    """Convolution, batch norm, activation.

    Args:
        cin: Input width.
        out: Output width.
        k: Kernel size.
        s: Stride.
        p: Padding; None means half the kernel.
        g: Groups.
        act: Name in `ACTIVATIONS`; True is SiLU.
    """

    def __init__(
        self,
        cin: Width,
        out: Width,
        k: int | Sequence[int] = 1,
        s: int = 1,
        p: int | None = None,
        g: int = 1,
        act: bool | str = True,
    ) -> None:
        super().__init__()
        kernel = (k, k) if isinstance(k, int) else (k[0], k[1])
        padding = (kernel[0] // 2, kernel[1] // 2) if p is None else (p, p)
        self.out = out
        self.conv = nn.Conv2d(cin.actual, out.actual, kernel, s, padding, groups=g, bias=False)
        self.bn: nn.Module = batch_norm(out.actual)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / s, W / s)."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Focus(Block):
    """The v5.0 stem: every 2x2 pixels become channels, then a convolution."""

    def __init__(self, cin: Width, c2: int, k: int = 1, *, widths: Widths) -> None:
        super().__init__()
        self.conv = Conv(cin + cin + cin + cin, widths.conv("conv", c2), k)
        self.out = self.conv.out

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / 2, W / 2)."""
        # Row offset changes fastest; checkpoints depend on the order.
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        y: Tensor = self.conv(torch.cat(corners, 1))
        return y


def adds_shortcut(cin: Width, out: Width, *, is_wanted: bool) -> bool:
    """Return whether a block adds its input to its output: it does where the layer list makes both equally wide.

    The nominal widths decide, so pruning never turns a shortcut on or off.

    Raises:
        ConfigError: The block has a shortcut, but its two ends were pruned to different widths.
    """
    if not is_wanted or cin.nominal != out.nominal:
        return False
    if cin.actual != out.actual:
        raise ConfigError(
            f"a shortcut adds {cin.actual} to {out.actual} channels; both ends must be pruned to the same width"
        )
    return True
