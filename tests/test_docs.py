"""What the documentation names exists: files, modules, symbols, links, and every command line with its flags."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_cli import flags_of
from tiny import ROOT

from commands.detect_config import DetectConfig
from commands.export_config import ExportConfig
from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.quantize_config import QuantizeConfig
from commands.slim_config import SlimConfig
from commands.train_config import DEFAULT_TRIALS, TrainConfig
from commands.train_sparsity_config import SparsityConfig
from commands.val_config import ValConfig
from utils.config.cli import RESUME_LATEST, parse

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md", *ROOT.glob("docs/*.md"))
)
CONFIGS: dict[str, type[Any]] = {
    "train.py": TrainConfig,
    "train_sparsity.py": SparsityConfig,
    "prune.py": PruneConfig,
    "finetune_pruned.py": FinetuneConfig,
    "slim.py": SlimConfig,
    "quantize.py": QuantizeConfig,
    "export.py": ExportConfig,
    "val.py": ValConfig,
    "detect.py": DetectConfig,
}
BARE = {"--resume": RESUME_LATEST, "--evolve": str(DEFAULT_TRIALS)}
# Flags of other programs, and of examples and benchmarks, that pages mention.
FOREIGN_FLAGS = {
    *("--extra-index-url", "--find-links", "--help", "--ipc", "--logdir", "--memory", "--nproc-per-node"),
    *("--config", "--higher-sizes", "--method", "--model", "--rescale", "--shm-size", "--st", "--variants"),
}
# Most characters of a line of a README table, bytes of a picture, words and numbers of the README.
MAX_ROW, MAX_PLOT, MAX_PHOTOGRAPH, MAX_WORDS = 118, 120_000, 200_000, 1500


def text_of(page: str) -> str:
    """Content of a page, by its path from the root."""
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text: str) -> str:
    """Prose alone: no fenced or indented blocks."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def slug(heading: str) -> str:
    """Anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def commands_in(text: str) -> list[str]:
    """Command lines of our scripts in indented blocks, continued lines joined."""
    joined = re.sub(r" *\\\n\s+", " ", text)
    found = re.findall(r"^    (?:\.venv/bin/)?(?:python|torchrun [^\n]*?) (\w+\.py .*)$", joined, flags=re.MULTILINE)
    return [line.partition("  #")[0] for line in found]


def missing_python_files(text: str) -> list[str]:
    """Paths `folder/file.py`, or a script's name in backticks, that are no files of the project."""
    named = {
        *re.findall(r"(?<![\w/.<])((?:\w+/)+\w+\.(?:py|yaml|sh|cpp|h))\b", text),
        *re.findall(r"`(\w+\.py)\b", text),
    }
    return sorted(name for name in named if not (ROOT / name).is_file() and not name.startswith(("runs/", "labels/")))


def missing_modules(text: str) -> list[str]:
    """Modules of `python -m` that cannot be found."""
    return sorted(name for name in set(re.findall(r"python -m ([\w.]+\w)", text)) if find_spec(name) is None)


def broken_links(page: str, text: str) -> list[str]:
    """Relative links whose file or heading does not exist."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists():
            broken.append(target)
        elif anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            broken += [target] * (anchor not in map(slug, headings))
    return broken


@pytest.mark.parametrize("page", PAGES)
def test_every_python_file_that_a_page_names_exists(page: str) -> None:
    assert missing_python_files(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_a_page_runs_exists(page: str) -> None:
    assert missing_modules(text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_resolves(page: str) -> None:
    assert broken_links(page, text_of(page)) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_a_page_imports_exists(page: str) -> None:
    lines = re.findall(r"^ *from ([\w.]+) import ([\w, ]+)$", text_of(page), flags=re.MULTILINE)
    missing = [
        f"{module}.{name}"
        for module, names in lines
        for name in names.split(", ")
        if not hasattr(import_module(module), name)
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_symbol_beside_its_file_exists_there(page: str) -> None:
    """Rows such as: | `pruning/surgery/cut.py` | `cut` ... |, and `file.py` (`symbol`)."""
    pairs = re.findall(r"`([\w/]+\.py)`(?: \(| \| )`(\w+)`", text_of(page))
    missing = [(file, name) for file, name in pairs if not re.search(rf"\b{name}\b", text_of(file))]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_line_is_accepted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("phone.json").touch()  # a table of times must exist
    lines = [line for line in commands_in(text_of(page)) if "..." not in line]
    for line in lines:
        script, *arguments = shlex.split(line)
        assert parse(CONFIGS[script], arguments, bare=BARE) is not None, line


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_a_page_mentions_exists(page: str) -> None:
    known = {flag for config_type in CONFIGS.values() for flag in flags_of(config_type)} | FOREIGN_FLAGS
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text_of(page)))
    assert sorted(mentioned - known) == []


def test_readme_shows_commands_that_are_checked() -> None:
    scripts = {line.split()[0] for line in commands_in(text_of("README.md"))}
    assert {"train.py", "train_sparsity.py", "prune.py", "finetune_pruned.py", "export.py", "val.py"} <= scripts


def test_readme_is_short() -> None:
    text = text_of("README.md")
    assert len(text.split()) <= MAX_WORDS
    assert max((len(line) for line in text.splitlines() if line.startswith("|")), default=0) <= MAX_ROW


def test_pictures_of_the_readme_are_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text_of("README.md"))
    assert len(pictures) >= 4
    sizes = {name: (ROOT / name).stat().st_size for name in pictures}
    assert {name: size for name, size in sizes.items() if size > MAX_PHOTOGRAPH} == {}
    assert {name: size for name, size in sizes.items() if name.endswith(".png") and size > MAX_PLOT} == {}


def test_every_report_is_linked_where_numbers_are_collected() -> None:
    reports = {path.name for path in (ROOT / "benchmarks/results").glob("*.md")}
    linked = set(re.findall(r"\(results/([^)]+)\)", text_of("benchmarks/README.md")))
    assert sorted(reports - linked) == []


def test_every_row_of_numbers_names_a_command_and_a_report() -> None:
    rows = [line for line in text_of("benchmarks/README.md").splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not row.startswith("| claim ")]
    assert len(claims) > 30
    assert [
        row for row in claims if not re.fullmatch(r"\| .+ \| .*\d.* \| `.+` \| \[.+\]\(results/.+\) \|", row)
    ] == []


def test_faq_answers_each_complaint_and_whether_to_prune() -> None:
    questions = re.findall(r"^## (.+\?)$", text_of("docs/faq.md"), flags=re.MULTILINE)
    assert len(questions) == 16
    assert "Should I prune at all, or take the smaller network?" in questions


def test_planted_faults_are_found() -> None:
    text = "`pruning/gone.py` and `gone.py`; python -m benchmarks.gone; [a](gone.md), [b](#gone)\n"
    assert missing_python_files(text) == ["gone.py", "pruning/gone.py"]
    assert missing_modules(text) == ["benchmarks.gone"]
    assert broken_links("README.md", text) == ["gone.md", "#gone"]
    assert commands_in("    python train.py --weights \\\n        a.pt\n") == ["train.py --weights a.pt"]
