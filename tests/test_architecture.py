"""Imports go left: utils < models < engine < pruning, quantization < deploy < tasks, reports < commands."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tiny import ROOT

# Packages of one level do not know each other.
LEVELS = {
    **{"utils": 0, "models": 1, "engine": 2, "pruning": 3, "quantization": 3},
    **{"deploy": 4, "tasks": 5, "reports": 5, "commands": 6},
}
SCRIPT_LEVEL = 7
# Folders whose files may import anything and are imported by nothing in the packages.
OUTSIDE = ("tests", "benchmarks", "docs", "examples", "tools")


def tracked_files() -> list[Path]:
    """Python files of the project, relative to it: those git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git here: the files of the project cannot be told from others")
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def imported_names(source: str, *, package: str) -> Iterator[str]:
    """First parts of every module a source imports, wherever it does so; `.x` counts as its own package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").split(".")[0]


def upward_imports(root: Path, files: Iterable[Path]) -> list[str]:
    """One line for every import of a package or script that does not lie to the left."""
    inside = [file for file in files if file.parts[0] not in OUTSIDE]
    scripts = {file.stem for file in inside if len(file.parts) == 1}
    found = []
    for file in inside:
        package = file.parts[0] if len(file.parts) > 1 else file.stem
        level = LEVELS.get(package, SCRIPT_LEVEL)
        for name in imported_names((root / file).read_text(encoding="utf-8"), package=package):
            is_above = LEVELS.get(name, -1) >= level and name != package
            if is_above or name in scripts or name in OUTSIDE:
                found.append(f"{file} imports {name}")
    return found


def test_no_package_imports_from_its_right_and_nothing_imports_a_script() -> None:
    assert upward_imports(ROOT, tracked_files()) == []


def test_every_folder_is_named_where_the_architecture_is_told() -> None:
    told = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    folders = {file.parent.as_posix() for file in tracked_files() if file.parts[0] in LEVELS}
    assert sorted(folder for folder in folders if f"`{folder}/`" not in told) == []


def test_every_folder_with_code_has_a_level() -> None:
    folders = {file.parts[0] for file in tracked_files() if len(file.parts) > 1}
    assert folders <= {*LEVELS, *OUTSIDE}


@pytest.mark.parametrize(
    ("file", "line", "finding"),
    [
        ("utils/planted.py", "from models.spec import ModelSpec", "models"),
        ("utils/deep/planted.py", "import engine.trainer as t", "engine"),
        ("models/planted.py", "def f():\n    from deploy import load", "deploy"),
        ("engine/planted.py", "if TYPE_CHECKING:\n    from pruning.plan import Plan", "pruning"),
        ("pruning/planted.py", "from quantization import observer", "quantization"),
        ("deploy/planted.py", "import train", "train"),
        ("reports/planted.py", "from tasks.choose import task_of", "tasks"),
        ("tasks/planted.py", "from reports import write_report", "reports"),
        ("detect.py", "from train import train", "train"),
        ("models/planted.py", "from tests.tiny import tiny_data", "tests"),
    ],
)
def test_planted_upward_import_is_found(tmp_path: Path, file: str, line: str, finding: str) -> None:
    for name, content in (("train.py", ""), (file, line)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert upward_imports(tmp_path, [Path("train.py"), Path(file)]) == [f"{file} imports {finding}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("engine/planted.py", "from utils.boxes import box_iou\nfrom engine.loss import DetectionLoss"),
        ("deploy/planted.py", "import quantization, torch"),
        ("utils/planted.py", "from . import boxes\nimport json"),
        ("detect.py", "from deploy import load"),
        ("tests/planted.py", "from train import train"),
    ],
)
def test_import_to_the_left_is_no_finding(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(line)
    (tmp_path / "train.py").write_text("")
    assert upward_imports(tmp_path, [Path("train.py"), Path(file)]) == []


def test_every_question_of_a_newcomer_has_a_place_that_exists() -> None:
    told = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+\?) \| `([\w/]+\.py)` `(\w+)` \|$", told, flags=re.MULTILINE)
    assert len(rows) == 26
    missing = []
    for question, file, symbol in rows:
        body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body if (ROOT / file).is_file() else []
        names = {getattr(node, "name", None) for node in body}
        names |= {ast.unparse(target) for node in body for target in getattr(node, "targets", [])}
        names |= {ast.unparse(node.target) for node in body if isinstance(node, ast.AnnAssign)}
        missing += [f"{question} {file} {symbol}"] * (symbol not in names)
    assert missing == []
