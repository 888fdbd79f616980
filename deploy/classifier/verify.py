"""Compares an exported classifier with its network: logits, accuracy, size and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from deploy.choices import Precision
from deploy.classifier.export import TOLERANCES, Logits, logits_error
from deploy.classifier.metadata import weights_fingerprint
from deploy.classifier.runtime import ClassifierRuntime
from deploy.verification.artefact import ArtefactReport, beyond, megabytes_of
from deploy.verification.latency import time_in_turns
from deploy.verification.report import aligned
from deploy.verification.verify import TOLERANCES as DETECTOR_TOLERANCES
from engine.evaluation.classification_scores import picture_batches, score, score_classifier
from models.classifiers import ClassifierSpec
from utils.datasets.classes.pictures import PictureSet
from utils.errors import CheckpointError

_HEADER = (
    *("artefact", "precision", "logits error", "accuracy", "was"),
    *("MB", "was", "ms", "median", "PyTorch", ""),
)
_RUNS = 50


@dataclass(frozen=True, kw_only=True)
class ClassifierReport(ArtefactReport):
    """Comparison of one artefact of a classifier with its network.

    Attributes:
        logits_error: Largest difference of logits, relative to the largest logit.
        accuracy: Accuracies of the network and of the artefact on the test images; None without data.
    """

    logits_error: float
    accuracy: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassifierReference:
    """The classifier that artefacts are compared with.

    Attributes:
        path: Path of the weights file.
        network: Network of that file, float32, on the CPU.
        spec: Specification of the classifier; says how images are normalised.
        images: Normalised images (N, C, H, W).
        test: Test images; None without data.
        threads: Number of threads, reported with the times.
    """

    path: Path
    network: Logits
    spec: ClassifierSpec
    images: Tensor
    test: PictureSet | None
    threads: int

    @cached_property
    def accuracy(self) -> float | None:
        """Accuracy on the test images, measured once for all formats; None without data."""
        return score_classifier(self.network.model, self.test, spec=self.spec).accuracy if self.test else None


def verify_classifier(artefact: ClassifierRuntime, reference: ClassifierReference, *, path: Path) -> ClassifierReport:
    """Compare an artefact with its network.

    Args:
        artefact: Artefact loaded from `path`.
        reference: Network and the images to compare on.
        path: Path of the artefact, for its size.

    Raises:
        CheckpointError: The artefact was exported from other weights.
    """
    if artefact.metadata.fingerprint != weights_fingerprint(reference.network.model):
        raise CheckpointError(f"{path} was exported from other weights; export it again from these")
    error = logits_error(artefact, reference.network, reference.images)
    accuracy = None
    if reference.test is not None and reference.accuracy is not None:
        found = score(artefact, picture_batches(reference.test, reference.spec))
        accuracy = reference.accuracy, found.accuracy
    calls = [partial(call, reference.images[:1]) for call in (reference.network, artefact)]
    with torch.inference_mode():
        network, own = time_in_turns(calls, threads=reference.threads, runs=_RUNS)
    precision = artefact.metadata.precision
    return ClassifierReport(
        path=path,
        format=artefact.metadata.format,
        precision=precision,
        logits_error=error,
        accuracy=accuracy,
        megabytes=(megabytes_of(reference.path), megabytes_of(path)),
        latency=(network, own),
        failures=_failures(precision, error=error, accuracy=accuracy),
    )


def _failures(precision: Precision, *, error: float, accuracy: tuple[float, float] | None) -> tuple[str, ...]:
    """Format one line for each value that exceeds its tolerance; that of accuracy equals that of mAP."""
    checks = [("error of logits", error, TOLERANCES[precision])]
    if accuracy is not None:
        checks.append(("accuracy lost", accuracy[0] - accuracy[1], DETECTOR_TOLERANCES[precision].ap_loss))
    return beyond(checks)


def report_table(reports: Sequence[ClassifierReport]) -> str:
    """Format an aligned table with one line per artefact, then what failed."""
    lines = aligned([_HEADER, *(_row(report) for report in reports)])
    lines.append(
        f"ms: fastest call with one image, threads: {reports[0].latency[0].threads}; "
        "accuracy: on the test images, - without --data"
    )
    lines += [f"{report.path.name}: {failure}" for report in reports for failure in report.failures]
    return "\n".join(lines)


def _row(report: ClassifierReport) -> tuple[str, ...]:
    network, own = report.latency
    was, now = ("-", "-") if report.accuracy is None else (f"{value:.4f}" for value in report.accuracy)
    return (
        report.path.name,
        report.precision,
        f"{report.logits_error:.1e}",
        now,
        was,
        f"{report.megabytes[1]:.3f}",
        f"{report.megabytes[0]:.3f}",
        f"{own.fastest:.2f}",
        f"{own.median:.2f}",
        f"{network.fastest:.2f}",
        "passed" if report.passed else "FAILED",
    )
