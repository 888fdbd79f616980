"""The programs of deploy/cpp, built for this processor or for 64-bit ARM, which is emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "deploy" / "cpp"


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of processor to build for.

    Attributes:
        library: Environment variable with the folder of ncnnConfig.cmake.
        tools: Programs that must be there.
        settings: For CMake.
        runner: What runs the program, before its name.
        needs_jpeg: Whether JPEG pixels must be those of OpenCV, which takes libjpeg.
    """

    library: str
    tools: tuple[str, ...]
    settings: tuple[str, ...] = ()
    runner: tuple[str, ...] = ()
    needs_jpeg: bool = True


# Debian's qemu-user has the first, qemu-user-static the other.
EMULATOR = "qemu-aarch64" if shutil.which("qemu-aarch64") else "qemu-aarch64-static"
NATIVE = Target(library="ncnn_DIR", tools=("cmake", "c++"))
AARCH64 = Target(
    library="ncnn_aarch64_DIR",
    tools=("cmake", "aarch64-linux-gnu-g++", EMULATOR),
    settings=(
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    ),
    runner=(EMULATOR, "-L", "/usr/aarch64-linux-gnu"),
    needs_jpeg=False,
)


def succeed(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def built(target: Target, program: str, folder: Path) -> list[str]:
    """The command that starts a program of deploy/cpp, built without a warning."""
    for tool in target.tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    if target.library not in os.environ:
        pytest.skip(f"no ncnn library: {target.library} is not set; make test-system builds one and sets it")
    settings = (f"-Dncnn_DIR={os.environ[target.library]}", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", *target.settings)
    succeed("cmake", "-S", SOURCES, "-B", folder, *settings)
    if (
        program == "detect"
        and target.needs_jpeg
        and "JPEG_INCLUDE_DIR-NOTFOUND" in (folder / "CMakeCache.txt").read_text()
    ):
        pytest.skip("libjpeg is not installed (Debian: libjpeg-dev)")
    succeed("cmake", "--build", folder, "-j", 2, "--target", program)
    return [*target.runner, str(folder / program)]


def run(program: Sequence[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """What the program says, called with these arguments."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [*program, *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def assert_one_line(done: subprocess.CompletedProcess[str], finding: str, *, program: str = "detect") -> None:
    """A refusal: exit code 2, and one line that begins with the name of the program."""
    assert done.returncode == 2
    assert finding in done.stderr
    assert done.stderr.startswith(f"{program}: ")
    assert done.stderr.count("\n") == 1
