"""Names that settings choose among; nothing heavy is imported here, so that command lines start at once."""

from __future__ import annotations

from typing import Literal

Sparsity = Literal["bn", "residual", "kernel", "mixed"]
Shortcuts = Literal["skip", "tied"]
Scope = Literal["global", "layer"]
# All criteria, and those that measure on data, see `pruning/importance/`.
CriterionName = Literal["bn_gamma", "kernel_l1", "kernel_l2", "fpgm", "random", "taylor", "fisher"]
MEASURED_CRITERIA: tuple[CriterionName, ...] = ("taylor", "fisher")
# What can be counted, and what a target can limit; ms needs a latency table.
CountedQuantity = Literal["macs", "params"]
CostQuantity = Literal["macs", "params", "ms"]
