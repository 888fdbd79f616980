"""The shape of the project's house, counted: folders, floors, lists, doors, loops, twins, smells.

    python -m benchmarks.house
    python -m benchmarks.house --root ../other-checkout
    python -m benchmarks.house --json

Counts the Python files that git tracks; prints each count beside the wanted one, and what was counted below the
table. The rules stand in the docstrings of `house_imports.py`, `house_code.py` and `house_twins.py`. Lines are all
lines, blank ones included. Unless a row says "anywhere", tests, benchmarks and examples are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import house_code as code
from benchmarks import house_imports as imports
from benchmarks import house_twins as twins
from benchmarks.house_source import House, inside, read_house, tracked_files
from benchmarks.report import table
from utils.config.cli import run_script

# Lines at commit 5377957, before the redesign, and how many fewer are wanted.
_LINES_BEFORE = 32_957
_FEWER_LINES = 2_500
_MOST_UNLIKE = 16
# Findings printed below the table per row; --json has all.
_MAX_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class HouseConfig:
    """Count what the design of the project asks for, on any checkout."""

    root: str = "."  # the checkout
    json: bool = False  # print all findings as JSON instead of the table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One count.

    Attributes:
        what: Name of what is counted.
        measured: Count.
        wanted: Largest count wanted; None where a row only informs.
        findings: What was counted, one line each.
    """

    what: str
    measured: int
    wanted: int | None
    findings: Sequence[str] = ()


def count(house: House) -> list[Row]:
    """Apply every rule to a checkout."""
    return [_unlike_row(house), *_import_rows(house), _lines_row(house), *_code_rows(house)]


def _unlike_row(house: House) -> Row:
    folders = sorted(imports.unlike_files(house).items(), key=lambda item: (-item[1], item[0]))
    folder, most = folders[0] if folders else ("-", 0)
    findings = [f"{name}: {number}" for name, number in folders if number > _MOST_UNLIKE]
    return Row(
        what=f"most unlike files in one folder ({folder}/)", measured=most, wanted=_MOST_UNLIKE, findings=findings
    )


def _import_rows(house: House) -> list[Row]:
    modules = imports.longest_chain(imports.package_graph(house, "pruning"))
    folders = imports.folder_graph(house, "pruning")
    floors = imports.longest_chain(folders)
    return [
        Row(what="import floors of pruning/, module by module", measured=len(modules), wanted=None, findings=modules),
        Row(what="import floors of pruning/, between its folders", measured=len(floors), wanted=6, findings=floors),
        _listed("circles between the folders of pruning/", [_arrows(c) for c in imports.circles(folders)], 0),
        _listed("upward imports", imports.upward_imports(house), 0),
        _listed(
            "import circles between modules, anywhere",
            [_arrows(circle) for circle in imports.circles(imports.import_graph(house))],
            0,
        ),
    ]


def _lines_row(house: House) -> Row:
    lines = sum(source.num_lines for source in inside(house).values())
    return Row(what="lines of Python", measured=lines, wanted=_LINES_BEFORE - _FEWER_LINES)


def _code_rows(house: House) -> list[Row]:
    return [
        _listed("files under 80 lines with one reader", imports.lone_small_files(house), 8),
        _listed("places that list the formats", code.format_lists(house), 1),
        _listed("doors to an evaluation", code.evaluation_doors(house), 1),
        _listed("training loops", code.training_loops(house), 1),
        _listed("twin functions (pairs)", twins.twins(house), 0),
        _listed("functions that a classifier's file and another name alike", twins.classifier_doubles(house), None),
        _listed("files above 400 lines", code.long_files(house), 0),
        _listed("functions above 60 lines", code.long_functions(house), 0),
        _listed('docstrings and attributes that begin with "Of" or "What"', code.bad_starts(house), 0),
    ]


def _listed(what: str, findings: Sequence[str], wanted: int | None) -> Row:
    return Row(what=what, measured=len(findings), wanted=wanted, findings=findings)


def _arrows(circle: Sequence[str]) -> str:
    return " <-> ".join(circle)


def measure(config: HouseConfig) -> None:
    """Count and print."""
    root = Path(config.root)
    rows = count(read_house(root, tracked_files(root)))
    shown = json.dumps([asdict(row) for row in rows], indent=2) if config.json else _printed(rows)
    sys.stdout.write(f"{shown}\n")


def _printed(rows: Sequence[Row]) -> str:
    cells = [(row.what, row.measured, "-" if row.wanted is None else f"at most {row.wanted}") for row in rows]
    parts = [table(["what", "measured", "wanted"], cells)]
    for row in rows:
        if row.findings:
            parts += ["", f"{row.what}:", *(f"  {finding}" for finding in row.findings[:_MAX_SHOWN])]
        if len(row.findings) > _MAX_SHOWN:
            parts.append(f"  and {len(row.findings) - _MAX_SHOWN} more; --json lists all")
    return "\n".join(parts)


if __name__ == "__main__":
    run_script(measure, HouseConfig)
