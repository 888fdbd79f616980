"""What is compared of every exported artefact, detector or classifier."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.runtime import Precision
from deploy.verification.latency import Latency


@dataclass(frozen=True, kw_only=True)
class ArtefactReport:
    """An artefact beside the network it came from.

    Attributes:
        path: The artefact.
        format: Its kind, such as onnx.
        precision: What it computes in.
        megabytes: Of the weights file and of the artefact, 10^6 bytes.
        latency: Of the network in PyTorch and of the artefact, on the same images.
        failures: What is beyond the tolerance, with the numbers.
    """

    path: Path
    format: str
    precision: Precision
    megabytes: tuple[float, float]
    latency: tuple[Latency, Latency]
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is beyond the tolerance."""
        return not self.failures


def megabytes_of(path: Path) -> float:
    """Size of a file, or of the files that hold a network in a folder, in 10^6 bytes."""
    files = (
        [path] if path.is_file() else [file for file in path.iterdir() if file.suffix in (".bin", ".param", ".xml")]
    )
    return sum(file.stat().st_size for file in files) / 1e6


def beyond(checks: Iterable[tuple[str, float, float]]) -> tuple[str, ...]:
    """One line for each (what, number, most) that is beyond what is allowed."""
    # Written so that NaN fails.
    return tuple(
        f"{what}: {value:.2g}, at most {most:g} allowed" for what, value, most in checks if not value <= most
    )
