"""Verification reports as a table and as JSON data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from deploy.verification.verify import VerifyReport
from utils.storage.run_folder import plain


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
