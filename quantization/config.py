"""How a network is quantised."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from quantization.program import LEAST_BITS, MOST_BITS
from utils.errors import ConfigError

Observer: TypeAlias = Literal["minmax", "percentile", "kl", "mse"]
WeightRange: TypeAlias = Literal["minmax", "mse"]


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """Bits of one layer that differ from those of the rest; None leaves them as they are.

    Attributes:
        weights: Of its weights.
        activations: Of what it gives.
    """

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        for what, bits in (("weights", self.weights), ("activations", self.activations)):
            if bits is not None:
                check_bits(bits, what=f"bits of {what}")


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """Bits, kinds of ranges, and exceptions.

    Attributes:
        weight_bits: Of every weight.
        activation_bits: Of every value that a convolution or linear layer reads.
        input_bits: Of the images; they come in 8.
        table_bits: How many bits more than `activation_bits` a value has that no convolution or linear layer reads:
            what goes into a lookup table, an addition or a join, or is an output; 16 at most in all. Such values are
            rounded a second time, and the first time should not be felt. Each costs a table twice as long.
        weight_symmetric: The integer of a zero weight is 0.
        activation_symmetric: The integer of a zero activation is 0.
        per_channel: Each output channel of a weight has a scale of its own.
        observer: Where a range of activations ends. minmax: at the extremes. percentile: where all but a few lie
            inside. kl: where the distribution changes least. mse: where the numbers change least.
        weight_range: The same for weights.
        percentile: Percent of the values that lie below the upper end, and above the lower one.
        layers: Bits of single layers, by pattern of their paths such as "model.2.*"; "input" is the images. Of
            several that fit, the last counts.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    input_bits: int = 8
    table_bits: int = 4
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    per_channel: bool = True
    observer: Observer = "minmax"
    weight_range: WeightRange = "minmax"
    percentile: float = 99.99
    layers: Mapping[str, LayerBits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "input_bits"):
            check_bits(getattr(self, name), what=name)
        if not _is_whole(self.table_bits) or not 0 <= self.table_bits <= MOST_BITS - LEAST_BITS:
            raise ConfigError(f"table_bits is {self.table_bits!r}, expected 0 to {MOST_BITS - LEAST_BITS}")
        if self.observer not in get_args(Observer):
            raise ConfigError(f"observer is {self.observer!r}, expected one of {', '.join(get_args(Observer))}")
        if self.weight_range not in get_args(WeightRange):
            raise ConfigError(
                f"weight_range is {self.weight_range!r}, expected one of {', '.join(get_args(WeightRange))}"
            )
        if not math.isfinite(self.percentile) or not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}, expected more than 50 and at most 100")


def check_bits(bits: object, *, what: str) -> None:
    """Check a number of bits.

    Raises:
        ConfigError: It is no whole number from 2 to 16.
    """
    if not _is_whole(bits) or not LEAST_BITS <= int(str(bits)) <= MOST_BITS:
        raise ConfigError(f"{what}: got {bits!r}, expected a whole number from {LEAST_BITS} to {MOST_BITS}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
