"""`SurgeryReport`: the size of a network before and after a cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.complexity import count_macs, count_parameters

_CONV_LIKE = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class NetworkSize:
    """The size of a network.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-adds of convolutions and linear layers for one image.
        megabytes: Size of its state in float32, in 10^6 bytes.
        widths: Output channels of each convolution and linear layer, by module path, in order.
        milliseconds: Predicted time of one image on a runtime; None if it was not predicted.
    """

    parameters: int
    macs: int
    megabytes: float
    widths: Mapping[str, int]
    milliseconds: float | None = None

    @classmethod
    def of(
        cls, model: nn.Module, image_chw: tuple[int, int, int], *, milliseconds: float | None = None
    ) -> NetworkSize:
        """Measure a network for one image of this size, given its predicted time if there is one."""
        return cls(
            parameters=count_parameters(model),
            macs=count_macs(model, image_chw),
            megabytes=sum(4 * tensor.numel() for tensor in model.state_dict().values()) / 1e6,
            widths={
                name: module.weight.shape[0]
                for name, module in model.named_modules()
                if isinstance(module, _CONV_LIKE)
            },
            milliseconds=milliseconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "megabytes": self.megabytes,
            "widths": dict(self.widths),
            **({} if self.milliseconds is None else {"milliseconds": self.milliseconds}),
        }


@dataclass(frozen=True, kw_only=True)
class SurgeryReport:
    """The size of a network before and after a cut.

    Attributes:
        before, after: Size before and after the cut.
    """

    before: NetworkSize
    after: NetworkSize

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Channels of every layer before and after the cut, by path; 0 after it for a layer of a removed block."""
        return {name: (width, self.after.widths.get(name, 0)) for name, width in self.before.widths.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"before": self.before.to_dict(), "after": self.after.to_dict()}

    def as_text(self) -> str:
        """Return one line per layer, then the totals."""
        length = max(len(name) for name in self.before.widths)
        lines = [f"{'layer':<{length}} {'before':>7} {'after':>7}"]
        for name, (before, after) in self.widths.items():
            mark = "" if after == before else f"  {'#' * round(20 * after / before):<20}|"
            lines.append(f"{name:<{length}} {before:7d} {after:7d}{mark}")
        return "\n".join([*lines, self.totals()])

    def totals(self) -> str:
        """Return one line with parameters, MACs, size and predicted time, and the factors by which they fell."""
        before, after = self.before, self.after
        time = ""
        if before.milliseconds and after.milliseconds:
            time = (
                f", predicted {before.milliseconds:.2f} ms -> {after.milliseconds:.2f} ms "
                f"({before.milliseconds / after.milliseconds:.2f}x faster)"
            )
        return (
            f"parameters {before.parameters:,} -> {after.parameters:,} ({before.parameters / after.parameters:.2f}x "
            f"fewer), MACs {before.macs / 1e9:.3f} G -> {after.macs / 1e9:.3f} G ({before.macs / after.macs:.2f}x "
            f"fewer), float32 size {before.megabytes:.2f} MB -> {after.megabytes:.2f} MB "
            f"({before.megabytes / after.megabytes:.2f}x smaller){time}"
        )
