"""Settings of the quantisation of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from quantization.program.program import LEAST_BITS, MOST_BITS
from utils.errors import ConfigError

Observer: TypeAlias = Literal["minmax", "percentile", "kl", "mse"]
WeightRange: TypeAlias = Literal["auto", "minmax", "mse"]
Rounded: TypeAlias = Literal["values", "inputs", "ends"]


@dataclass(frozen=True, kw_only=True)
class LayerBits:
    """Bits of one layer that differ from those of the rest; None means the same as the rest.

    Attributes:
        weights: Bits of its weights.
        activations: Bits of its result.
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
        weight_bits: Bits of every weight.
        activation_bits: Bits of every value that a convolution or linear layer reads.
        input_bits: Bits of the images, which have 8 originally.
        table_bits: Bits beyond `activation_bits` for a value that no convolution or linear layer reads, but a lookup
            table, an addition or a concatenation, or that is an output; at most 16 in total. Such values are rounded
            a second time, and the first rounding should have no effect. Each bit doubles the length of a table.
        head_bits: Least bits of the weights of layers whose results the network returns, and of what these read: no
            later layer evens out their rounding, and they have a few thousandths of the weights.
        weight_symmetric: Whether the zero point of weights is 0.
        activation_symmetric: Whether the zero point of activations is 0.
        activation_signed: Whether symmetric integers are signed even where no value is negative.
        rounded: Which values are rounded in fake mode. values: all, as in integer arithmetic. inputs: only what
            convolutions and linear layers read, as in runtimes that compute everything else in floating point. ends:
            what these layers read and what they return.
        per_channel: Whether each output channel of a weight has its own scale.
        observer: Choice of the range of activations. minmax: the extremes. percentile: all but a few values. kl: the
            least change of the distribution. mse: the least squared change of the values.
        weight_range: Choice of the range of weights, "minmax" or "mse"; "auto" is mse for weights of few bits.
        percentile: Percentage of the values below the upper end, and above the lower end.
        layers: Bits of single layers, by pattern of their paths such as "model.2.*"; "input" means the images. If
            several patterns match, the last one applies.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    input_bits: int = 8
    table_bits: int = 4
    head_bits: int = 8
    weight_symmetric: bool = True
    activation_symmetric: bool = False
    activation_signed: bool = False
    rounded: Rounded = "values"
    per_channel: bool = True
    observer: Observer = "minmax"
    weight_range: WeightRange = "auto"
    percentile: float = 99.99
    layers: Mapping[str, LayerBits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits", "input_bits", "head_bits"):
            check_bits(getattr(self, name), what=name)
        if not _is_whole(self.table_bits) or not 0 <= self.table_bits <= MOST_BITS - LEAST_BITS:
            raise ConfigError(f"table_bits is {self.table_bits!r}, expected 0 to {MOST_BITS - LEAST_BITS}")
        if self.observer not in get_args(Observer):
            raise ConfigError(f"observer is {self.observer!r}, expected one of {', '.join(get_args(Observer))}")
        if self.weight_range not in get_args(WeightRange):
            raise ConfigError(
                f"weight_range is {self.weight_range!r}, expected one of {', '.join(get_args(WeightRange))}"
            )
        if self.rounded not in get_args(Rounded):
            raise ConfigError(f"rounded is {self.rounded!r}, expected one of {', '.join(get_args(Rounded))}")
        if not math.isfinite(self.percentile) or not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}, expected more than 50 and at most 100")


def check_bits(bits: object, *, what: str) -> None:
    """Check a number of bits.

    Raises:
        ConfigError: `bits` is not an integer from 2 to 16.
    """
    if not _is_whole(bits) or not LEAST_BITS <= int(str(bits)) <= MOST_BITS:
        raise ConfigError(f"{what}: got {bits!r}, expected a whole number from {LEAST_BITS} to {MOST_BITS}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
