"""Agreement of an exported classifier with its network: logits and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from deploy.choices import Precision
from utils.storage.run_folder import plain


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest allowed differences between an artefact and the float32 network.

    Attributes:
        logits_error: Difference of logits, relative to the largest logit.
        accuracy_loss: Loss of accuracy.
    """

    logits_error: float
    accuracy_loss: float


# By the artefact's precision.
TOLERANCES: Mapping[Precision, Tolerance] = {
    "fp32": Tolerance(logits_error=1e-4, accuracy_loss=0.0005),
    "fp16": Tolerance(logits_error=2e-2, accuracy_loss=0.002),
    "bf16": Tolerance(logits_error=1e-1, accuracy_loss=0.005),
    "int8": Tolerance(logits_error=0.25, accuracy_loss=0.01),
}


@dataclass(frozen=True, kw_only=True)
class LogitsAgreement:
    """Agreement of logits and accuracy, with the methods of `deploy.outputs.outputs.Agreement`.

    Attributes:
        logits_error: Largest difference of logits, relative to the largest logit.
        accuracy: Accuracies of the network and of the artefact on the test images; None without data.
    """

    logits_error: float
    accuracy: tuple[float, float] | None
    columns: ClassVar[tuple[str, ...]] = ("logits error", "accuracy", "was")
    caption: ClassVar[str] = "accuracy: on the test images"

    @classmethod
    def of(
        cls, found: Any, expected: Any, images: Tensor, *, accuracy: tuple[float, float] | None
    ) -> LogitsAgreement:
        """Compare two runtimes.

        Args:
            found: Runtime of the artefact.
            expected: Runtime of the network.
            images: Normalised images (N, C, H, W).
            accuracy: Accuracies of the network and of the artefact.
        """
        return cls(logits_error=logits_error(found(images).cpu(), expected(images).cpu()), accuracy=accuracy)

    @property
    def cells(self) -> tuple[str, ...]:
        """Values as text, one per column."""
        was, now = ("-", "-") if self.accuracy is None else (f"{value:.4f}" for value in self.accuracy)
        return f"{self.logits_error:.1e}", now, was

    def checks(self, precision: Precision) -> list[tuple[str, float, float]]:
        """Return what is limited, its value, and the maximum at this precision."""
        tolerance = TOLERANCES[precision]
        checks = [("error of logits", self.logits_error, tolerance.logits_error)]
        if self.accuracy is not None:
            checks.append(("accuracy lost", self.accuracy[0] - self.accuracy[1], tolerance.accuracy_loss))
        return checks

    def notes(self, precision: Precision) -> list[str]:
        """Return nothing: all logits are compared."""
        return []

    def data(self, precision: Precision) -> dict[str, Any]:
        """Return plain data for result.json, including the tolerance."""
        return {**plain(self), "tolerance": plain(TOLERANCES[precision])}


def logits_error(found: Tensor, expected: Tensor) -> float:
    """Compute the largest difference of logits (N, classes), relative to the largest expected logit."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
