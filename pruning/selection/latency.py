"""Latency tables: how long each distinct layer of a network takes on a runtime, at pairs of widths.

A table is plain data. Who measures it writes it down here, on this machine or on a phone; who plans reads it:

    ms = sum over layers of t_kind(inputs, outputs) + fixed_ms + ms_per_value * values

`t_kind` is interpolated bilinearly between measured widths; `values` counts what all layers write for one image. The
last two terms are the rest of the network: concatenations, upsampling, pooling, and the call of the runtime itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from utils.errors import ConfigError
from utils.storage.files import write_json

FORMAT_VERSION = 1
Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """Everything but the widths that decides how long a layer takes.

    Attributes:
        kind: "conv", "depthwise", "grouped" or "linear".
        kernel, stride, padding, dilation: Settings of a convolution, (height, width).
        group: Input and output channels of one group; (0, 0) if every output reads every input.
        activation: Name of the function that follows, or "none".
        input_hw: Height and width of the input map.
        end: "first" if it reads the image, "last" if no layer reads it: int8 may leave these in floating point.
    """

    kind: str
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    group: Pair = (0, 0)
    activation: str = "none"
    input_hw: Pair = (1, 1)
    end: Literal["", "first", "last"] = ""

    def as_text(self) -> str:
        """Return a short description for messages."""
        parts = [f"{self.kind} {self.kernel[0]}x{self.kernel[1]}", f"stride {self.stride[0]}"]
        parts += [self.activation, f"input {self.input_hw[0]}x{self.input_hw[1]}", *filter(None, [self.end])]
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Milliseconds of one kind of layer at pairs of widths.

    Attributes:
        inputs: Measured input widths, ascending (I,); for layers of groups the input channels of one group.
        outputs: Measured output widths, ascending (O,).
        ms: Milliseconds, I rows of O numbers.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        is_ascending = all(
            axis and min(axis) > 0 and list(axis) == sorted(set(axis)) for axis in (self.inputs, self.outputs)
        )
        is_full = len(self.ms) == len(self.inputs) and all(len(row) == len(self.outputs) for row in self.ms)
        if not is_ascending or not is_full or not all(0 <= ms < math.inf for row in self.ms for ms in row):
            raise ConfigError(
                "latency table: a layer needs ascending widths and one finite number of milliseconds for each pair; "
                "measure the table again"
            )

    @cached_property
    def _rows(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array(self.ms)

    def at(self, inputs: float, outputs: float) -> float:
        """Interpolate bilinearly; a layer below the smallest measured width takes as long as that one."""
        column = [np.interp(outputs, self.outputs, row) for row in self._rows]
        return float(np.interp(inputs, self.inputs, column))

    def covers(self, inputs: int, outputs: int) -> bool:
        """Return whether a width is measured that is as large, for both."""
        return inputs <= self.inputs[-1] and outputs <= self.outputs[-1]

    def scaled(self, factor: float) -> LayerTimes:
        """Return the times of a machine that takes `factor` times as long."""
        return replace(self, ms=tuple(tuple(factor * ms for ms in row) for row in self.ms))


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions of a measurement; times under other conditions are other times.

    Attributes:
        runtime: Name of the format, such as "ncnn".
        precision: "fp32", "fp16" or "int8".
        threads: Number of threads.
        image_chw: Channels, height and width of the image.
    """

    runtime: str
    precision: str
    threads: int
    image_chw: tuple[int, int, int]

    def check(self, wanted: Conditions, *, where: str) -> None:
        """Refuse a table under other conditions than those wanted.

        Raises:
            ConfigError: One of them differs; the message says which.
        """
        for name in ("runtime", "precision", "threads", "image_chw"):
            own, other = getattr(self, name), getattr(wanted, name)
            flag = "--img-size" if name == "image_chw" else f"--{name}"
            if own != other:
                raise ConfigError(
                    f"{where} was measured with {name.removesuffix('_chw')} {_plain(own)}, expected {_plain(other)}; "
                    f"give another table or another {flag}"
                )


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Times of the layers of a network on one runtime and machine.

    Attributes:
        conditions: Conditions of the measurement.
        version: Version of the runtime.
        machine: Name of the CPU, phone or board.
        layers: Times by kind of layer.
        fixed_ms: Milliseconds of the rest of the network, whatever the widths.
        ms_per_value: Milliseconds of the rest of the network per value that its layers write.
        reference_ms: Milliseconds of the reference network, timed with the table, which shows later drift.
    """

    conditions: Conditions
    version: str
    machine: str
    layers: Mapping[LayerKind, LayerTimes]
    fixed_ms: float = 0.0
    ms_per_value: float = 0.0
    reference_ms: float = 0.0

    def times_of(self, kind: LayerKind, *, name: str, inputs: int, outputs: int) -> LayerTimes:
        """Return the times of a layer of the network to prune.

        Raises:
            ConfigError: The table lacks the layer, or does not reach its widths.
        """
        if finding := self.lack_of(kind, name=name, inputs=inputs, outputs=outputs):
            raise ConfigError(f"latency table: {finding}; measure the table for this network")
        return self.layers[kind]

    def lack_of(self, kind: LayerKind, *, name: str, inputs: int, outputs: int) -> str:
        """Return why the table has no times of a layer, for messages; "" if it has them."""
        times = self.layers.get(kind)
        if times is None:
            return f"layer {name} is missing ({kind.as_text()})"
        if not times.covers(inputs, outputs):
            return (
                f"layer {name} has {inputs} inputs and {outputs} outputs, measured are up to "
                f"{times.inputs[-1]} and {times.outputs[-1]}"
            )
        return ""

    def scaled(self, factor: float) -> LatencyTable:
        """Return the table of a machine that takes `factor` times as long."""
        return replace(
            self,
            layers={kind: times.scaled(factor) for kind, times in self.layers.items()},
            fixed_ms=factor * self.fixed_ms,
            ms_per_value=factor * self.ms_per_value,
            reference_ms=factor * self.reference_ms,
        )

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        layers = [{**asdict(kind), **asdict(times)} for kind, times in self.layers.items()]
        write_json(path, {"format_version": FORMAT_VERSION, **asdict(replace(self, layers={})), "layers": layers})

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table.

        Raises:
            ConfigError: There is no such file, or it is no latency table.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            if "networks" in values:
                raise ValueError("a list of layers to time: run time_layers with it on the device")
            if values.pop("format_version") != FORMAT_VERSION:
                raise ValueError("another format version")
            return cls._from_dict(values)
        except OSError as error:
            raise ConfigError(f"--latency-table {path} cannot be read: {error.strerror}; check the path") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"--latency-table {path} is no latency table ({reason}); measure it again") from error

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> LatencyTable:
        conditions = Conditions(**_tuples(values.pop("conditions")))
        layers = {}
        for row in map(_tuples, values.pop("layers")):
            times = {item.name: row.pop(item.name) for item in fields(LayerTimes)}
            layers[LayerKind(**row)] = LayerTimes(**times)
        table = cls(conditions=conditions, layers=layers, **values)
        numbers = (table.fixed_ms, table.ms_per_value, table.reference_ms)
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError("a time of the rest is no number")
        if not layers or table.reference_ms <= 0:
            raise ValueError("the layers or the reference lack their times")
        return table


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the lists of JSON into tuples."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    return {name: frozen(value) for name, value in values.items()}


def _plain(value: object) -> str:
    """Return an image size as text, and anything else as it is."""
    return "x".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
