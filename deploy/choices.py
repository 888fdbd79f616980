"""Names that settings choose from; imports nothing heavy, so that command lines answer at once."""

from __future__ import annotations

from typing import Literal, TypeAlias

# "integer" computes only with integers, of any width; with "int8" a runtime may compute some layers in floats.
Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "integer"]
# Precisions that latency tables are of.
LatencyPrecision: TypeAlias = Literal["fp32", "fp16", "int8"]
# How int8 chooses the ranges of activations.
Int8Method: TypeAlias = Literal["mse", "minmax", "kl"]
