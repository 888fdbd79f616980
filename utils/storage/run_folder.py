"""The folder of one run: runs/train/exp, exp2, ..."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.config.cli import RESUME_LATEST
from utils.device import machine_name
from utils.errors import ConfigError
from utils.storage.files import write_json, write_yaml

# Packages that decide results and times, beside torch.
_PACKAGES = ("torchvision", "numpy", "opencv-python-headless", "ncnn", "onnxruntime", "openvino")


# File of a run folder with the settings of the run, which `--config` takes.
CONFIG_NAME = "opt.yaml"


class RunSettings(Protocol):
    """Settings of a command that writes a run folder."""

    @property
    def project(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def exist_ok(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder that one run writes to, including its `result.json`."""

    path: Path

    @classmethod
    def create(cls, *, project: str | Path, name: str, exist_ok: bool = False) -> RunFolder:
        """Create `project/name`, or the first free of `name2`, `name3`, ...

        Raises:
            ConfigError: The folder cannot be created (read-only or full disk, a file in the way).
        """
        path = Path(project) / name
        number = 2
        try:
            while True:
                try:
                    path.mkdir(parents=True, exist_ok=exist_ok)
                    return cls(path=path)
                except FileExistsError:
                    if exist_ok:
                        raise
                    path = Path(project) / f"{name}{number}"
                    number += 1
        except OSError as error:
            raise ConfigError(
                f"cannot create the run folder {path}: {error.strerror}; choose another --project"
            ) from error

    @classmethod
    def begin(cls, config: RunSettings) -> RunFolder:
        """Make the folder that a command's settings name, and keep the settings in it.

        Raises:
            ConfigError: The folder cannot be made or written to.
        """
        folder = cls.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
        folder.write_config(config)
        return folder

    def write_config(self, config: Any) -> None:
        """Write the settings of the run to opt.yaml, which `--config` reads back."""
        write_yaml(self.path / CONFIG_NAME, plain(config))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json: the results of the run, the command and the versions."""
        environment = {
            "command": shlex.join(sys.argv),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": machine_name(),
            "packages": _versions(_PACKAGES),
        }
        write_json(self.path / "result.json", {**result, "environment": environment})


def resumed_folder(resume: str, project: str | Path, *, script: str) -> Path:
    """Return the run folder that `--resume` names: the one given, or the newest in `project`.

    Raises:
        ConfigError: There is none.
    """
    if resume == RESUME_LATEST:
        found = sorted(Path(project).glob(f"*/{CONFIG_NAME}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ConfigError(f"--resume: no run in {project}; give the folder of one")
        return found[-1].parent
    folder = Path(resume)
    if not (folder / CONFIG_NAME).exists():
        raise ConfigError(f"--resume {folder}: no folder of a run of {script}.py; give one such as runs/{script}/exp")
    return folder


@contextmanager
def continued_by(command: str) -> Iterator[None]:
    """Let an interrupt say how the run goes on.

    Raises:
        KeyboardInterrupt: The user stopped the run; the message has the command.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{command} continues this run") from None


def plain(value: Any) -> Any:
    """Convert dataclasses, tuples and paths to the dicts, lists and strings of YAML and JSON."""
    return json.loads(json.dumps(value, default=_plain_part))


def _plain_part(value: Any) -> Any:
    """Return the fields of a dataclass, wherever it lies in the value, and any other object as text."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
