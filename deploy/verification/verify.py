"""Compares an exported artefact with its network: outputs, metric, size and speed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.outputs.outputs import Agreement, Source
from deploy.verification.latency import Latency, measure_latencies

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
