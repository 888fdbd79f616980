"""The folder of one run: runs/train/exp, exp2, ..."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import ConfigError
from utils.files import write_json, write_yaml


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where one run writes; every script's `result.json` lies here."""

    path: Path

    @classmethod
    def create(cls, *, project: str | Path, name: str, exist_ok: bool = False) -> RunFolder:
        """Make `project/name`, or the first free of `name2`, `name3`, ...

        Raises:
            ConfigError: The folder cannot be made (read-only or full disk, a file in the way).
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
                f"cannot make the run folder {path}: {error.strerror}; choose another --project"
            ) from error

    def write_config(self, config: Any) -> None:
        """Keep the settings of the run as opt.yaml; it can be given back as `--config`."""
        write_yaml(self.path / "opt.yaml", plain(config))

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json: the numbers of the run, the command and the versions."""
        environment = {
            "command": shlex.join(sys.argv),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        write_json(self.path / "result.json", {**result, "environment": environment})


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as the dicts, lists and strings that YAML and JSON know."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, default=str))
