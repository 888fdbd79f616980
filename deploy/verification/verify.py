"""Compares an exported artefact with its network: outputs, metric, size and speed, as a table and as JSON data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.outputs.outputs import Agreement, Source
from deploy.verification.latency import Latency, measure_latencies
from utils.storage.run_folder import plain

# Function from a runtime, and the only height and width to measure at (None: any), to mAP50-95 or accuracy.
MeasureMetric = Callable[[RuntimeModel, tuple[int, int] | None], float]


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """Comparison of an artefact with the network it came from.

    Attributes:
        path: Path of the artefact.
        format: Suffix of the artefact's format, such as ".onnx".
        precision: Precision that the artefact computes in.
        agreement: Agreement of outputs and metric, as the task measures it.
        megabytes: Sizes of the weights file and of the artefact, in 10^6 bytes.
        latency: Latencies of the network in PyTorch and of the artefact, on the same images.
        failures: Lines on the values that exceed their tolerance.
    """

    path: Path
    format: str
    precision: Precision
    agreement: Agreement
    megabytes: tuple[float, float]
    latency: tuple[Latency, Latency]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if all values are within their tolerance."""
        return not self.failures


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """The network that artefacts are compared with.

    Attributes:
        path: Path of the weights file.
        source: Network of that file.
        images: Images (B, C, H, W) in the form of network input.
        threads: Number of threads, reported with the times.
        measure: Function that measures the metric; None without data.
    """

    path: Path
    source: Source
    images: Tensor
    threads: int
    measure: MeasureMetric | None = None

    @cached_property
    def runtime(self) -> RuntimeModel:
        """The network in PyTorch, float32, on the CPU."""
        return self.source.runtime(torch.device("cpu"))


def verify(artefact: RuntimeModel, reference: Reference, *, path: Path, batch_size: int = 1) -> VerifyReport:
    """Compare an artefact with its network.

    Args:
        artefact: Artefact loaded from `path`.
        reference: Network and the images to compare on.
        path: Path of the artefact, for its size.
        batch_size: Images per timed call.
    """
    source, network, measure = reference.source, reference.runtime, reference.measure
    frame = artefact.input_hw
    measured = (measure(network, frame), measure(artefact, frame)) if measure else None
    agreement = source.compare(artefact, network, reference.images, measured=measured)
    batch = reference.images[:1].expand(batch_size, -1, -1, -1)
    was, now = measure_latencies((network, artefact), batch, threads=reference.threads, runs=source.timed_calls)
    return VerifyReport(
        path=path,
        format=artefact.format,
        precision=artefact.precision,
        agreement=agreement,
        megabytes=(megabytes_of(reference.path), megabytes_of(path)),
        latency=(was, now),
        failures=beyond(agreement.checks(artefact.precision)),
    )


def megabytes_of(path: Path) -> float:
    """Return the size of a file, or of the network's files in a folder, in 10^6 bytes."""
    files = (
        [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in (".bin", ".param", ".xml")]
    )
    return sum(file.stat().st_size for file in files) / 1e6


def beyond(checks: Iterable[tuple[str, float, float]]) -> tuple[str, ...]:
    """Format one line for each (what, value, maximum) whose value exceeds its maximum."""
    # `not <=` instead of `>`, so that NaN fails.
    return tuple(
        f"{what}: {value:.2g}, at most {most:g} allowed" for what, value, most in checks if not value <= most
    )


def verify_table(reports: Sequence[VerifyReport]) -> str:
    """Format an aligned table with one line per artefact, then what could not be compared and what failed."""
    agreement = reports[0].agreement
    header = ("artefact", "precision", *agreement.columns, "MB", "was", "ms", "median", "PyTorch", "")
    lines = _aligned([header, *(_row(report) for report in reports)])
    threads = sorted({latency.threads for report in reports for latency in report.latency})
    lines.append(f"ms: fastest call, threads: {', '.join(map(str, threads))}; {agreement.caption}, - without --data")
    for report in reports:
        lines += [f"{report.path.name}: {line}" for line in report.agreement.notes(report.precision)]
    lines += [f"{report.path.name}: {failure}" for report in reports for failure in report.failures]
    return "\n".join(lines)


def report_data(report: VerifyReport) -> dict[str, Any]:
    """Return plain data for result.json, including the tolerances."""
    common = {item.name: plain(getattr(report, item.name)) for item in fields(report) if item.name != "agreement"}
    return {**common, "passed": report.passed, **report.agreement.data(report.precision)}


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Format the lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(report: VerifyReport) -> tuple[str, ...]:
    network, own = report.latency
    return (
        report.path.name,
        report.precision,
        *report.agreement.cells,
        f"{report.megabytes[1]:.3f}",
        f"{report.megabytes[0]:.3f}",
        f"{own.fastest:.2f}",
        f"{own.median:.2f}",
        f"{network.fastest:.2f}",
        "passed" if report.passed else "FAILED",
    )
