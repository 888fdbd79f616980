"""What a cut did to a network: `SurgeryReport`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from utils.complexity import count_macs, count_parameters

_CONV_LIKE = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """How large a network is.

    Attributes:
        parameters: Numbers that train.
        macs: Multiply-adds of convolutions and linear layers for one image.
        megabytes: Of its state in float32, 10^6 bytes.
        widths: Output channels of each convolution and linear layer, by module path, in order.
    """

    parameters: int
    macs: int
    megabytes: float
    widths: Mapping[str, int]

    @classmethod
    def of(cls, model: nn.Module, image_chw: tuple[int, int, int]) -> NetworkSize:
        """Measure a network for one image of this size."""
        return cls(
            parameters=count_parameters(model),
            macs=count_macs(model, image_chw),
            megabytes=sum(4 * tensor.numel() for tensor in model.state_dict().values()) / 1e6,
            widths={
                name: module.weight.shape[0]
                for name, module in model.named_modules()
                if isinstance(module, _CONV_LIKE)
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "megabytes": self.megabytes,
            "widths": dict(self.widths),
        }


@dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """A network before and after.

    Attributes:
        before, after: Its size.
    """

    before: NetworkSize
    after: NetworkSize

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Channels of every layer before and after; 0 after for one that is gone with its block."""
        return {name: (width, self.after.widths.get(name, 0)) for name, width in self.before.widths.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"before": self.before.to_dict(), "after": self.after.to_dict()}

    def as_text(self) -> str:
        """A line per layer, then the totals."""
        length = max(len(name) for name in self.before.widths)
        lines = [f"{'layer':<{length}} {'before':>7} {'after':>7}"]
        for name, (before, after) in self.widths.items():
            mark = "" if after == before else f"  {'#' * round(20 * after / before):<20}|"
            lines.append(f"{name:<{length}} {before:7d} {after:7d}{mark}")
        return "\n".join([*lines, self.totals()])

    def totals(self) -> str:
        """One line: parameters, MACs and size, and how many times smaller."""
        before, after = self.before, self.after
        return (
            f"parameters {before.parameters:,} -> {after.parameters:,} ({before.parameters / after.parameters:.2f}x "
            f"fewer), MACs {before.macs / 1e9:.3f} G -> {after.macs / 1e9:.3f} G ({before.macs / after.macs:.2f}x "
            f"fewer), float32 size {before.megabytes:.2f} MB -> {after.megabytes:.2f} MB "
            f"({before.megabytes / after.megabytes:.2f}x smaller)"
        )
