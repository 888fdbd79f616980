"""The layer list of a v5.0 model YAML, one row per layer, and the effect of each module on widths and strides."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One row of the layer list.

    Attributes:
        source: Index of the layer that it reads, counting back where negative; several indices for a join.
        number: Repeats, already scaled by the depth multiple; 0 is a C3 without bottlenecks.
        module: Name in `MODULE_RULES`.
        args: Arguments after the input width; output channels already scaled by the width multiple.
    """

    source: int | tuple[int, ...]
    number: int
    module: str
    args: tuple[Any, ...] = ()

    def sources(self, index: int) -> tuple[int, ...]:
        """Return the absolute indices of the layers that this one, at `index`, reads; -1 is the image."""
        given = (self.source,) if isinstance(self.source, int) else self.source
        return tuple(index + source if source < 0 else source for source in given)


@dataclass(frozen=True, kw_only=True)
class ModuleRule:
    """The properties of a module that the layer list depends on.

    Attributes:
        is_scaled: True if the first argument is a channel count that the width multiple scales.
        takes_number: True if the module repeats its inside, False if copies of it are chained.
        is_join: True if the module reads a list of tensors.
        reduction: Function from the arguments to input size divided by output size.
    """

    is_scaled: bool = False
    takes_number: bool = False
    is_join: bool = False
    reduction: Callable[[Sequence[Any]], Fraction] = lambda args: Fraction(1)


def _stride_at(position: int, *, default: int) -> Callable[[Sequence[Any]], Fraction]:
    return lambda args: Fraction(args[position] if len(args) > position else default)


MODULE_RULES: dict[str, ModuleRule] = {
    "Conv": ModuleRule(is_scaled=True, reduction=_stride_at(2, default=1)),
    "Focus": ModuleRule(is_scaled=True, reduction=lambda args: Fraction(2)),
    "Bottleneck": ModuleRule(is_scaled=True),
    "BottleneckCSP": ModuleRule(is_scaled=True, takes_number=True),
    "C3": ModuleRule(is_scaled=True, takes_number=True),
    "C3TR": ModuleRule(is_scaled=True, takes_number=True),
    "SPP": ModuleRule(is_scaled=True),
    "SPPF": ModuleRule(is_scaled=True),
    # MobileNet widths are not scaled: its own multiplier is part of the architecture.
    "InvertedResidual": ModuleRule(reduction=_stride_at(3, default=1)),
    "MaxPool2d": ModuleRule(reduction=_stride_at(1, default=2)),
    "ZeroPad2d": ModuleRule(),
    "Upsample": ModuleRule(reduction=lambda args: 1 / Fraction(args[1])),
    "Concat": ModuleRule(is_join=True),
    "Detect": ModuleRule(is_join=True),
}


def scale_layer(row: Any, *, depth: float, width: float) -> LayerSpec:
    """Read a YAML row `[from, number, module, args]` and apply the depth and width multiples.

    Raises:
        ConfigError: The row has another shape, or its module is unknown.
    """
    if not isinstance(row, list | tuple) or len(row) != 4 or not isinstance(row[3], list | tuple):
        raise ConfigError(f"got {row!r}, expected [from, number, module, [arguments]]")
    source, number, name, args = row
    module = str(name).removeprefix("nn.")
    if module not in MODULE_RULES:
        raise ConfigError(f"unknown module {name!r}; known: {', '.join(MODULE_RULES)}")
    if not _is_index(number) or number < 0:
        raise ConfigError(f"{module}: number is {number!r}, expected a whole number of repeats")
    arguments = () if module == "Detect" else freeze(args)
    if MODULE_RULES[module].is_scaled:
        if not arguments or not _is_index(arguments[0]) or arguments[0] < 1:
            raise ConfigError(
                f"{module}: arguments {list(arguments)} do not start with output channels; give a number first"
            )
        arguments = (math.ceil(arguments[0] * width / 8) * 8, *arguments[1:])
    repeats = max(round(number * depth), 1) if number > 1 else number
    return LayerSpec(source=freeze(source), number=repeats, module=module, args=arguments)


def check_layer(layer: LayerSpec, *, index: int) -> None:
    """Check the sources, module and repeats of the layer at `index`.

    Raises:
        ConfigError: The module is unknown, a source is not an earlier layer, or the number of inputs or repeats
            does not fit the module.
    """
    rule = MODULE_RULES.get(layer.module)
    if rule is None:
        raise ConfigError(f"unknown module {layer.module!r}; known: {', '.join(MODULE_RULES)}")
    given = (layer.source,) if isinstance(layer.source, int) else layer.source
    if not isinstance(given, tuple) or not given or not all(_is_index(source) for source in given):
        raise ConfigError(f"{layer.module}: 'from' is {layer.source!r}, expected layer indices")
    for source in layer.sources(index):
        if not (-1 if index == 0 else 0) <= source < index:
            raise ConfigError(f"{layer.module}: 'from' {layer.source!r} names no earlier layer; correct it")
    if len(given) > 1 and not rule.is_join:
        raise ConfigError(f"{layer.module}: reads one layer, got 'from' {layer.source!r}; put a Concat before it")
    if layer.number == 0 and not rule.takes_number:
        raise ConfigError(f"{layer.module}: number is 0; remove the layer instead")


def head_strides(layers: Sequence[LayerSpec]) -> tuple[int, ...]:
    """Return the image pixels per cell of each feature map that the last layer, Detect, reads.

    Raises:
        ConfigError: A layer joins maps of different sizes, or a module has arguments of a wrong kind.
    """
    strides: dict[int, Fraction] = {-1: Fraction(1)}
    for index, layer in enumerate(layers[:-1]):
        inputs = {strides[source] for source in layer.sources(index)}
        if len(inputs) > 1:
            sizes = ", ".join(f"1/{stride}" for stride in sorted(inputs))
            raise ConfigError(
                f"layer {index} ({layer.module}): joins maps of different sizes: {sizes}; correct its 'from'"
            )
        try:
            # A chain of copies reduces once per copy.
            copies = 1 if MODULE_RULES[layer.module].takes_number else layer.number
            strides[index] = inputs.pop() * MODULE_RULES[layer.module].reduction(layer.args) ** copies
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            raise ConfigError(
                f"layer {index} ({layer.module}): arguments {list(layer.args)} give no stride; correct them"
            ) from None
    return tuple(math.ceil(strides[source]) for source in layers[-1].sources(len(layers) - 1))


def freeze(value: Any) -> Any:
    """Convert nested lists to tuples, and the YAML text 'None' to None."""
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return None if value == "None" else value


def thaw(value: Any) -> Any:
    """Convert nested tuples to lists, for YAML and JSON."""
    return [thaw(item) for item in value] if isinstance(value, list | tuple) else value


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
