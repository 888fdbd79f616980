"""Material for tests: the shared folder beside the project, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["skips"]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

# Tests never depend on time: on a busy machine any example may take long.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden files, weights and test data; a user's clone has none."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the project: golden files and weights are not part of it")
    return SHARED
