"""The scripts of `make test-system`: one line for what is missing, and no half-built library is ever used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tiny import ROOT

SCRIPTS = ROOT / "tests" / "system"
# In the place of cmake: makes the folder that it is told to install into.
CMAKE = """#!/bin/sh
for word; do case $word in -DCMAKE_INSTALL_PREFIX=*) mkdir -p "${word#*=}/lib/cmake/ncnn";; esac; done
"""
BROKEN_AT_THE_END = CMAKE + '[ "$1" != --install ]\n'


def stub(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def run_script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which("bash")), str(SCRIPTS / name), *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_root_one_line_names_the_missing_packages(tmp_path: Path) -> None:
    stub(tmp_path, "apt-get", "#!/bin/sh\nexit 1\n")
    stub(tmp_path, "id", "#!/bin/sh\necho 1000\n")
    (tmp_path / "find").symlink_to(str(shutil.which("find")))
    done = run_script("install_tools.sh", PATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: missing: cmake make g++ g++-aarch64-linux-gnu qemu-user")
    assert "; as root: apt-get install cmake make g++" in done.stderr


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a source package in it, so that nothing is downloaded."""
    version = re.search(r"^ncnn==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert version is not None
    cache = tmp_path / "cache"
    (cache / f"ncnn-{version[1]}").mkdir(parents=True)
    with tarfile.open(cache / f"ncnn-{version[1]}.tar.gz", "w:gz") as archive:
        archive.add(cache / f"ncnn-{version[1]}", arcname=f"ncnn-{version[1]}")
    (cache / f"ncnn-{version[1]}").rmdir()
    return cache


def build(cache: Path, cmake: str) -> subprocess.CompletedProcess[str]:
    stub(cache.parent / "bin", "cmake", cmake)
    path = f"{cache.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return run_script("build_ncnn.sh", "native", PATH=path, SMALL_DETECTOR_CACHE=str(cache))


def test_library_is_built_once_and_only_whole_ones_are_used(cache: Path) -> None:
    failed = build(cache, BROKEN_AT_THE_END)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "error: cmake failed for ncnn" in failed.stderr
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []

    (cache / "building.killed").mkdir()
    built = build(cache, CMAKE)
    assert built.returncode == 0
    assert Path(built.stdout.strip()).is_dir()
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [Path(built.stdout.strip()).parents[2].name]

    again = build(cache, "#!/bin/sh\nexit 1\n")
    assert (again.returncode, again.stdout, again.stderr) == (0, built.stdout, "")


def test_unknown_target_is_one_line(cache: Path) -> None:
    done = run_script("build_ncnn.sh", "mips", SMALL_DETECTOR_CACHE=str(cache))
    assert (done.returncode, done.stderr) == (2, "error: target mips: expected native or aarch64\n")
