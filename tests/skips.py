"""A pytest plugin: tests marked `system` wait for `make test-system`, and in CI no skip hides a missing tool.

In CI (variable `CI`) a skip whose reason is not in `ALLOWED` is a failure, so that a green run has run everything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

SHARED = Path(__file__).parents[2] / "shared"
SYSTEM = "make test-system runs it"

# Whole reasons, as patterns. What a package of Debian or PyPI can bring is no reason; a GPU is.
ALLOWED = (
    SYSTEM,
    "there is a GPU",
    "a flip does not change the size, so nothing tells which one is meant",
)
# Reasons of a user's clone, which has no ../shared: they hold only there.
ALLOWED_WITHOUT_SHARED = (
    r"no \.\./shared beside the project: .*",
    "the shared weights are not beside the project",
    "the shared golden files are not beside the project",
)

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def is_allowed(reason: str, *, has_shared: bool) -> bool:
    """Whether CI may skip a test for this reason."""
    patterns = ALLOWED if has_shared else ALLOWED + ALLOWED_WITHOUT_SHARED
    return any(re.fullmatch(pattern, reason) for pattern in patterns)


def failed_unless_allowed(report: Report) -> Report:
    """Turn a skip in CI into a failure, unless its reason is allowed; an expected failure is no skip."""
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return report
    assert isinstance(report.longrepr, tuple)
    file, line, message = report.longrepr
    reason = message.removeprefix("Skipped: ")
    if not is_allowed(reason, has_shared=SHARED.is_dir()):
        report.outcome = "failed"
        report.longrepr = f"{file}:{line}: skipped in CI, where nothing may be missing: {reason}"
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--system", action="store_true", help="run the tests that need what make test-system installs")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--system"):
        return
    for item in items:
        if item.get_closest_marker("system"):
            # A `skipif`, which pytest asks before any `skip`: it must come before that of a missing tool.
            item.add_marker(pytest.mark.skipif(True, reason=SYSTEM), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_unless_allowed((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_unless_allowed((yield))
