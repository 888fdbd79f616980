"""The folder of one run: runs/train/exp, exp2, ..."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from utils.errors import ConfigError
from utils.storage.files import write_json, write_yaml


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
        write_yaml(self.path / "opt.yaml", plain(config))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json: the results of the run, the command and the versions."""
        environment = {
            "command": shlex.join(sys.argv),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        write_json(self.path / "result.json", {**result, "environment": environment})


def plain(value: Any) -> Any:
    """Convert dataclasses, tuples and paths to the dicts, lists and strings of YAML and JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))
