"""Material for tests: the shared folder beside the project, where there is one."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

pytest_plugins = ["skips"]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# Tests never depend on time: on a busy machine any example may take long.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Leave torch as many threads as it had before a test: runs are repeated to the bit only with as many."""
    threads = torch.get_num_threads()
    try:
        return (yield)
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files, weights and test data; a user's clone has none."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the project: golden files and weights are not part of it")
    return SHARED
