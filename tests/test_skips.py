"""In CI a skip for a missing tool is a failure, and tests marked `system` wait for `make test-system`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import is_allowed
from tiny import ROOT

PLANTED = """
import os

import pytest

@pytest.fixture
def tool():
    pytest.skip("no cmake")

def test_that_skips():
    pytest.skip("no cmake")

def test_whose_fixture_skips(tool):
    assert True

@pytest.mark.skipif(True, reason="no cmake")
def test_that_is_marked():
    assert True

def test_with_an_allowed_reason():
    pytest.skip("there is a GPU")

@pytest.mark.xfail(reason="no cmake")
def test_that_is_expected_to_fail():
    assert False

@pytest.mark.system
def test_of_the_system():
    assert True

@pytest.mark.system
@pytest.mark.skipif("TOOLS" not in os.environ, reason="no cmake")
def test_of_the_system_that_needs_a_tool():
    assert True
"""
WHOLE_FILE = "import pytest\n\npytest.importorskip('unheard_of', reason='no cmake')\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests that are skipped in every way there is."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "test_planted.py").write_text(PLANTED)
    (folder / "test_whole_file.py").write_text(WHOLE_FILE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = system: later\n")
    return folder


def run_pytest(folder: Path, *arguments: str, ci: str) -> tuple[int, str]:
    """Exit code and output of pytest with the plugin alone."""
    environment = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT / "tests")}
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "skips", "-p", "no:cacheprovider", *arguments, "."]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_at_home_skips_are_skips_and_tests_of_the_system_say_where_they_run(folder: Path) -> None:
    code, output = run_pytest(folder, ci="")
    assert code == 0
    assert "7 skipped, 1 xfailed" in output
    assert "make test-system runs it" in output


def test_in_ci_every_skip_without_an_allowed_reason_fails(folder: Path) -> None:
    """In processes of xdist, as CI runs them."""
    code, output = run_pytest(folder, "-n", "1", ci="true")
    assert code == 1
    assert "1 failed, 3 skipped, 1 xfailed, 3 errors" in output
    assert output.count("skipped in CI, where nothing may be missing: no cmake") >= 4


def test_tests_of_the_system_run_with_their_flag(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLS", "all")
    code, output = run_pytest(folder, "--system", "-m", "system", "--ignore", "test_whole_file.py", ci="true")
    assert code == 0
    assert "2 passed, 5 deselected" in output


@pytest.mark.parametrize(
    ("reason", "has_shared", "expected"),
    [
        ("there is a GPU", True, True),
        ("there is a GPU of the wrong kind", True, False),
        ("onnx is not installed; see requirements-export.txt", True, False),
        ("no ../shared beside the project: golden files and weights are not part of it", False, True),
        ("no ../shared beside the project: golden files and weights are not part of it", True, False),
    ],
)
def test_reasons_are_allowed_whole(reason: str, has_shared: bool, expected: bool) -> None:
    assert is_allowed(reason, has_shared=has_shared) == expected
