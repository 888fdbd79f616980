"""The folder of an experiment, in which every stage runs once and goes on where it was killed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from commands.prune import CHECKPOINT_NAME, run_pruning
from commands.prune_config import PruneConfig
from utils.errors import ConfigError
from utils.storage.files import read_yaml
from utils.storage.run_folder import RunFolder, RunSettings, plain

# Settings that say where, not what.
PLACES = ("project", "name", "exist_ok", "cache_dir", "device")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A complete training.

    Attributes:
        weights: Checkpoint after the last epoch.
        accuracy: Accuracy on the test images then, 0 to 1.
    """

    weights: Path
    accuracy: float

    @classmethod
    def of(cls, folder: Path) -> Stage:
        """Read what a training has written."""
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return cls(weights=folder / "weights/last.pt", accuracy=result["final"]["accuracy"])


def experiment_folder(config: RunSettings) -> RunFolder:
    """Return the folder of an experiment, new or, with `exist_ok`, to go on in.

    Raises:
        ConfigError: What lies there was made with other settings, or the folder cannot be made.
    """
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    kept = folder.path / "opt.yaml"
    if kept.exists():
        before, now = read_yaml(kept, what="settings"), plain(config)
        for name in sorted((before.keys() & now.keys()) - set(PLACES)):
            if before[name] != now[name]:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{folder.path} was made with {flag} {before[name]}, not {now[name]}; give another --name"
                )
    folder.write_config(config)
    return folder


def prune_stage(config: PruneConfig) -> Path:
    """Prune, unless that is done, and return the checkpoint."""
    folder = Path(config.project) / config.name
    if not (folder / "result.json").exists():
        run_pruning(config)
    return folder / CHECKPOINT_NAME
