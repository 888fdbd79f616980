"""The folder of a run of slim.py, read as data: its settings and the results of its stages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.selection.score_drop import ScoreDrop
from utils.errors import ConfigError
from utils.storage.files import read_yaml

RESULT_NAME, SETTINGS_NAME = "result.json", "opt.yaml"
# Stages of a round, in the order in which they run.
SPARSE, PRUNE, FINETUNE = "sparse", "prune", "finetune"
_ROUND_STAGES = (SPARSE, PRUNE, FINETUNE)
DENSE, EXPORT, SCAN = "dense", "export", "scan"
# Network that the first cut was made from, where no stage of the run trained it.
UNCUT = "uncut"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One finished stage of a run.

    Attributes:
        name: Folder below that of the run, such as "dense" or "round1/prune".
        path: The folder.
        result: Content of its result.json.
        settings: Content of its opt.yaml; empty where there is none.
    """

    name: str
    path: Path
    result: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Last part of the name, such as "prune"."""
        return self.name.rpartition("/")[2]

    @property
    def round(self) -> str:
        """Folder of the round, such as "round1"; "" for a stage outside of rounds."""
        return self.name.rpartition("/")[0]

    def value(self, key: str) -> Any:
        """Return a value of the result.

        Raises:
            ConfigError: The result has no such value.
        """
        if key not in self.result:
            raise ConfigError(f"{self.path / RESULT_NAME} has no {key!r}; repeat the stage {self.name}")
        return self.result[key]

    def read(self, file: str) -> Any:
        """Return the content of a JSON file of the stage; None where there is none."""
        path = self.path / file
        return read_json(path) if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class SlimRun:
    """A run folder.

    Attributes:
        path: The folder.
        settings: Content of its opt.yaml.
        result: Content of its result.json; empty while the run is not complete.
        stages: Finished stages that make or change a network, in order.
        exports: Finished runs of export.py below it.
        scans: Finished runs of prune.py that scanned: those of rounds, then others.
        drop: Rounds under `max_map_drop` and the one that was taken, once they are over; else None.
    """

    path: Path
    settings: dict[str, Any]
    result: dict[str, Any]
    stages: tuple[Stage, ...]
    exports: tuple[Stage, ...]
    scans: tuple[Stage, ...]
    drop: ScoreDrop | None = None

    @classmethod
    def read(cls, path: Path) -> SlimRun:
        """Read a run folder; stages that have no result.json are left out.

        Raises:
            ConfigError: It is no run folder of slim.py, no stage is finished, or a file is damaged.
        """
        drop = ScoreDrop.load(path)
        if not (path / SETTINGS_NAME).is_file():
            raise ConfigError(f"{path}: no folder of a run of slim.py; give one such as runs/slim/exp")
        rounds = sorted((folder.name for folder in path.glob("round*")), key=_index_of_round)
        names = [UNCUT, DENSE, *(f"{name}/{kind}" for name in rounds for kind in _ROUND_STAGES)]
        stages = _finished(path, names)
        if not stages:
            raise ConfigError(f"{path}: no stage of this run is finished; --resume {path} continues with it")
        return cls(
            path=path,
            settings=read_yaml(path / SETTINGS_NAME, what="configuration"),
            result=read_json(path / RESULT_NAME) if (path / RESULT_NAME).is_file() else {},
            stages=stages,
            exports=_finished(path, _begin_with(path, EXPORT)),
            scans=tuple(stage for stage in (*stages, *_finished(path, _begin_with(path, SCAN))) if _has_scan(stage)),
            drop=drop if drop and drop.is_over else None,
        )

    def of_kind(self, kind: str) -> tuple[Stage, ...]:
        """Return the stages of a kind, such as "prune", in the order of their rounds."""
        return tuple(stage for stage in self.stages if stage.kind == kind)

    @property
    def cuts(self) -> tuple[Stage, ...]:
        """Cuts that led to the network to ship: all, but for one that lost more than `max_map_drop` allows."""
        found = self.of_kind(PRUNE)
        if self.drop is None:
            return found
        last = self.drop.taken.number if self.drop.taken else 0
        return tuple(cut for cut in found if _index_of_round(cut.round) <= last)

    def in_round(self, stage: Stage, kind: str) -> Stage | None:
        """Return the stage of a kind in the same round; None where it is not finished."""
        return next((other for other in self.of_kind(kind) if other.round == stage.round), None)

    def stage_of(self, weights: str) -> Stage | None:
        """Return the stage that wrote a checkpoint, also where the run folder was moved; None for other files.

        The weights that the run was given are those of the stage that measured them before any cut, if one did.
        """
        if self.stages[0].kind == UNCUT and weights == self.settings.get("weights"):
            return self.stages[0]
        folder = Path(weights).parent
        folder = folder.parent if folder.name == "weights" else folder
        matches = [stage for stage in self.stages if folder.parts[-len(Path(stage.name).parts) :] == _parts(stage)]
        return matches[-1] if matches else None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ConfigError: It is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; repeat the stage that writes it") from error


def _begin_with(path: Path, name: str) -> list[str]:
    """Return the names of the files and folders below a run folder that begin so, such as "export2"."""
    return sorted(found.name for found in path.glob(f"{name}*"))


def _has_scan(stage: Stage) -> bool:
    return bool(stage.result.get("scan"))


def _parts(stage: Stage) -> Sequence[str]:
    return Path(stage.name).parts


def _index_of_round(name: str) -> int:
    digits = re.fullmatch(r"round(\d+)", name)
    return int(digits[1]) if digits else 0


def _finished(path: Path, names: Sequence[str]) -> tuple[Stage, ...]:
    """Return those of the stages that have written a result."""
    stages = []
    for name in names:
        folder = path / name
        if not (folder / RESULT_NAME).is_file():
            continue
        settings = folder / SETTINGS_NAME
        read = read_yaml(settings, what="configuration") if settings.is_file() else {}
        result = read_json(folder / RESULT_NAME)
        if not isinstance(result, dict):
            raise ConfigError(f"{folder / RESULT_NAME}: expected the result of a stage; repeat the stage")
        stages.append(Stage(name=name, path=folder, result=result, settings=read))
    return tuple(stages)
