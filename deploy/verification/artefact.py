"""The part of a verification report that detectors and classifiers share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.choices import Precision
from deploy.verification.latency import Latency


@dataclass(frozen=True, kw_only=True)
class ArtefactReport:
    """Comparison of an artefact with the network it came from.

    Attributes:
        path: Path of the artefact.
        format: Suffix of the artefact's format, such as ".onnx".
        precision: Precision that the artefact computes in.
        megabytes: Sizes of the weights file and of the artefact, in 10^6 bytes.
        latency: Latencies of the network in PyTorch and of the artefact, on the same images.
        failures: Lines on the values that exceed their tolerance.
    """

    path: Path
    format: str
    precision: Precision
    megabytes: tuple[float, float]
    latency: tuple[Latency, Latency]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if all values are within their tolerance."""
        return not self.failures


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
