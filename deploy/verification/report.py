"""Verification reports as a table and as JSON data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.verification.verify import TOLERANCES, VerifyReport
from utils.storage.run_folder import plain

_HEADER = ("artefact", "precision", "head error", "same boxes", "mAP", "was", "MB", "ms", "median", "PyTorch", "")


def verify_table(reports: Sequence[VerifyReport]) -> str:
    """Format an aligned table with one line per artefact, then what could not be compared and what failed."""
    lines = aligned([_HEADER, *(_row(report) for report in reports)])
    threads = sorted({latency.threads for report in reports for latency in report.latency})
    lines.append(f"ms: fastest call, threads: {', '.join(map(str, threads))}; mAP: 50-95, - without --data")
    if not all(report.boxes.expected for report in reports):
        lines.append(
            "no boxes to compare: on these images the network finds none above 0.25; give --data with images like "
            "those it was trained on"
        )
    lines += [_ties_line(report) for report in reports if report.boxes.tied]
    lines += [f"{report.path.name}: {failure}" for report in reports for failure in report.failures]
    return "\n".join(lines)


def _ties_line(report: VerifyReport) -> str:
    """Format the line that reports how many boxes were not compared."""
    near = TOLERANCES[report.precision].score
    return (
        f"{report.path.name}: {report.boxes.tied} boxes not compared: a choice between scores less than {near:g} "
        "apart fell the other way"
    )


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Format the lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def report_data(report: VerifyReport) -> dict[str, Any]:
    """Return plain data for result.json, including the tolerances."""
    derived = {"passed": report.passed, "same_boxes": report.boxes.share}
    return {**plain(report), **derived, "tolerance": plain(TOLERANCES[report.precision])}


def _row(report: VerifyReport) -> tuple[str, ...]:
    network, own = report.latency
    was, now = report.ap or (None, None)
    return (
        report.path.name,
        report.precision,
        f"{max(head.largest for head in report.heads):.1e}",
        f"{report.boxes.share:.1%} of {report.boxes.expected}",
        "-" if now is None else f"{now:.4f}",
        "-" if was is None else f"{was:.4f}",
        f"{report.megabytes[1]:.2f}",
        f"{own.fastest:.1f}",
        f"{own.median:.1f}",
        f"{network.fastest:.1f}",
        "passed" if report.passed else "FAILED",
    )
