"""What users are told: every message of a mistake says how to go on, not only what is wrong."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from tiny import ROOT

PACKAGES = ("utils", "models", "engine", "pruning", "quantization", "deploy", "tasks", "commands")
ERRORS = {"ConfigError", "DataError", "CheckpointError", "TrainingError", "PruningError", "QuantizationError"}
# Words that introduce the remedy: after a semicolon, or as what would have been right.
REMEDIES = ("; ", "expected", "known: ")


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and source text of the message of every user error that is raised with words of its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            message = node.exc.args[0] if node.exc.args else ast.Constant("")
            if node.exc.func.id in ERRORS and not _passes_on(message):
                yield node.lineno, ast.unparse(message)


def _passes_on(message: ast.expr) -> bool:
    """Whether the words are another error's, at most with the place put before them."""
    is_call = isinstance(message, ast.Call)
    last = message.values[-1] if isinstance(message, ast.JoinedStr) else None
    return is_call or isinstance(last, ast.FormattedValue)


def without_remedy(source: str) -> list[int]:
    return [line for line, message in messages(source) if not any(words in message for words in REMEDIES)]


def test_every_message_says_how_to_go_on() -> None:
    files = [*ROOT.glob("*.py"), *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]
    found = [f"{file.relative_to(ROOT)}:{line}" for file in files for line in without_remedy(file.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ('raise DataError(f"{path} is broken")', True),
        ("raise ConfigError()", True),
        ('raise DataError(f"{path} is broken; replace it")', False),
        ('raise ConfigError(f"size: got {size}, expected 1 or more")', False),
        ('raise ConfigError(f"{path}: {error}")', False),
        ('raise ValueError("our own mistake")', False),
    ],
)
def test_message_without_a_remedy_is_found(line: str, is_found: bool) -> None:
    assert without_remedy(line) == ([1] if is_found else [])
