"""Cost and savings of quantisation, as tables for people."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantization.sensitivity import Sensitivity
from quantization.storage.sizes import FormSize

# File of a run folder with what each layer costs.
SENSITIVITY_NAME = "sensitivity.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network before and after.

    Attributes:
        metric: Name of what was measured; higher is better.
        floats: Metric of the network in float32.
        untrained: Metric with rounded real numbers before training; None without training.
        fake: Metric with rounded real numbers, where that was asked for.
        integer: Metric of the file that was written.
        seconds: Seconds that measuring the file took, reading images included.
    """

    metric: str
    floats: float
    untrained: float | None
    fake: float | None
    integer: float
    seconds: float

    @property
    def lost(self) -> float:
        """By how much integers are worse; negative where they are better."""
        return self.floats - self.integer

    @property
    def is_spoilt(self) -> bool:
        """Whether training has made the network worse."""
        return self.untrained is not None and self.integer < self.untrained


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """One layer in so many bits, all else in real numbers.

    Attributes:
        layer: Its name.
        bits: Bits of its weights, of the values it reads, or both.
        weight_bytes: Bytes of its weights in so many bits.
        metric: Metric of the network.
        loss: By how much that is worse than with real numbers.
    """

    layer: str
    bits: int
    weight_bytes: float
    metric: float
    loss: float


def sensitivity_rows(table: Sequence[Sensitivity], *, num_bytes: Callable[[str, int], float]) -> list[SensitivityRow]:
    """Return the table with the bytes of each layer's weights; those that lose most come first."""
    rows = [
        SensitivityRow(
            layer=row.layer,
            bits=row.bits,
            weight_bytes=num_bytes(row.layer, row.bits),
            metric=row.metric,
            loss=row.loss,
        )
        for row in table
    ]
    return sorted(rows, key=lambda row: row.loss, reverse=True)


def read_sensitivity(path: Path) -> tuple[Sensitivity, ...]:
    """Read the rows that `sensitivity_rows` made from a JSON file."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple(Sensitivity(**{name: row[name] for name in ("layer", "bits", "metric", "loss")}) for row in rows)


def sensitivity_table(rows: Sequence[SensitivityRow], *, metric: str) -> str:
    """One line for each layer and number of bits."""
    cells = [
        (row.layer, str(row.bits), f"{row.weight_bytes:.0f}", f"{row.metric:.4f}", f"{row.loss:+.4f}") for row in rows
    ]
    return _aligned([("layer", "bits", "bytes", metric, "lost"), *cells])


def result_table(measured: Measured, sizes: Sequence[FormSize], *, written: str) -> str:
    """Return the metric of each mode, then the bytes of each form.

    Args:
        measured: The metric.
        sizes: The forms.
        written: Which of them is the artefact's.
    """
    modes = [
        ("float32", measured.floats),
        ("fake, before training", measured.untrained),
        ("fake", measured.fake),
        (f"file, {written}", measured.integer),
    ]
    found = [(name, value) for name, value in modes if value is not None]
    metrics = [(name, f"{value:.4f}", f"{value - measured.floats:+.4f}") for name, value in found]
    forms = [
        (f"{size.form}{' (written)' * (size.form == written)}", str(size.num_bytes), f"{size.times_smaller:.1f}")
        for size in sizes
    ]
    return "\n".join(
        (
            _aligned([("network", measured.metric, "against float32"), *metrics]),
            _aligned([("form", "bytes", "times smaller"), *forms]),
        )
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
