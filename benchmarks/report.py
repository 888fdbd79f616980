"""Dated result files: what was measured, with which command, versions and machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from utils.device import machine_name
from utils.storage.files import write_text

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("torch", "numpy", "opencv-python-headless", "faster-coco-eval")


def device_name() -> str:
    """Return the GPU's name, or the processor's with the number of cores used."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{machine_name()}, {torch.get_num_threads()} threads"


def _command() -> str:
    """Return the command line as a reader would type it, without this machine's paths."""
    spec = sys.modules["__main__"].__spec__
    program = f"-m {spec.name}" if spec else Path(sys.argv[0]).name
    arguments = [Path(argument).name if argument.startswith("/") else argument for argument in sys.argv[1:]]
    return " ".join(["python", program, *arguments])


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; floats with three digits."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) and abs(cell) < 100 else _text(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(cell: object) -> str:
    return f"{cell:.0f}" if isinstance(cell, float) else str(cell)


def report_path(name: str) -> Path:
    """Return the path of a report that is written today; pictures of it have the same name."""
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    return RESULTS / f"{name}_{kind}_{datetime.now(UTC):%Y-%m-%d}.md"


def write_report(name: str, *, title: str, body: str, facts: Mapping[str, object] | None = None) -> Path:
    """Write results/<name>_<device>_<date>.md and return its path."""
    path = report_path(name)
    versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES if _is_installed(package))
    lines = [
        f"# {title}",
        "",
        f"- date: {path.stem[-10:]}",
        f"- command: `{_command()}`",
        f"- machine: {device_name()}",
        f"- versions: Python {platform.python_version()}, {versions}",
        *(f"- {key}: {value}" for key, value in (facts or {}).items()),
        "",
        body,
        "",
    ]
    write_text(path, "\n".join(lines))
    return path
