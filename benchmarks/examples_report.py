"""A report of what an experiment of examples/ found, from its run folder.

python -m benchmarks.examples_report --run runs/lenet/exp --name lenet_mnist
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.report import table, write_report
from examples.stages import PLACES
from utils.config.cli import run_script


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run."""

    run: str  # its folder
    name: str  # of the report, such as lenet_mnist


def report(config: ReportConfig) -> None:
    """Write the rows of its result.json as a table."""
    folder = Path(config.run)
    rows: list[dict[str, Any]] = json.loads((folder / "result.json").read_text(encoding="utf-8"))["rows"]
    settings = yaml.safe_load((folder / "opt.yaml").read_text(encoding="utf-8"))
    told = {name: value for name, value in settings.items() if name not in PLACES and value not in (None, "")}
    told["data"] = Path(str(told["data"])).name
    path = write_report(
        config.name,
        title=f"examples/{config.name.split('-')[0]}.py",
        body=table(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows]),
        facts={"settings": json.dumps(told), "run": f"`python -m examples.{config.name.split('-')[0]}` with these"},
    )
    sys.stdout.write(f"{path.read_text()}written to {path}\n")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_script(report, ReportConfig)
