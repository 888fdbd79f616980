"""The result of slim.py: scores and size of the network after each stage, and the file that is shipped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.prune_latency import LATENCY_NAME, predicted_ms
from commands.slim_candidates import compared
from commands.slim_config import SlimConfig
from commands.slim_stages import Stage
from commands.slim_start import uncut_stage
from engine.evaluation.evaluator import label
from pruning.selection.latency import LatencyTable
from pruning.selection.score_drop import ScoreDrop
from pruning.surgery.report import NetworkSize
from tasks.choose import task_of
from tasks.task import Task
from utils.storage.run_folder import plain


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """One row of the table: a network after a stage.

    Attributes:
        stage: Such as "round1/finetune".
        weights: The checkpoint.
        scores: On val, by name.
        parameters: Numbers that train.
        macs: For one image of the size that is validated.
        megabytes: In float32, 10^6 bytes.
        milliseconds: Predicted time of one image on the runtime of a target in milliseconds.
    """

    stage: str
    weights: Path
    scores: Mapping[str, float]
    parameters: int
    macs: int
    megabytes: float
    milliseconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for result.json, each score under its own name."""
        values = {name: value for name, value in plain(self).items() if value is not None}
        return {**values.pop("scores"), **values}


def slim_table(rows: Sequence[StageResult]) -> str:
    """List scores and size of each stage, a line each."""
    widths = {name: max(7, len(label(name))) for name in rows[0].scores}
    names = " ".join(f"{label(name):>{width}}" for name, width in widths.items())
    is_timed = rows[0].milliseconds is not None
    lines = [f"{'stage':<18} {names} {'parameters':>12} {'MACs G':>8} {'MB':>7}" + is_timed * f" {'ms':>8}"]
    for row in rows:
        scores = " ".join(f"{row.scores[name]:{width}.3f}" for name, width in widths.items())
        line = f"{row.stage:<18} {scores} {row.parameters:12,d} {row.macs / 1e9:8.3f} {row.megabytes:7.2f}"
        lines.append(line if row.milliseconds is None else f"{line} {row.milliseconds:8.2f}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file or folder that was made for the runtime.

    Attributes:
        path: Its path.
        passed: Whether it agrees with the network; None if it could not run here.
        milliseconds: Fastest call for one image; None if it could not run here.
    """

    path: Path
    passed: bool | None
    milliseconds: float | None

    @classmethod
    def of(cls, folder: Path) -> Exported:
        """Read what export.py wrote into its run folder."""
        result = _read(folder)
        if not result["reports"]:
            return cls(path=Path(result["not_run"][0]), passed=None, milliseconds=None)
        report = result["reports"][0]
        return cls(path=Path(report["path"]), passed=report["passed"], milliseconds=report["latency"][1]["fastest"])

    def as_text(self) -> str:
        """Return a line on the file and its verification."""
        if self.passed is None:
            return f"exported: {self.path}, not verified: this machine cannot run it"
        verdict = "agrees with the network" if self.passed else "DOES NOT AGREE with the network"
        return f"exported: {self.path}, {self.milliseconds:.2f} ms here, {verdict}"


@dataclass(frozen=True, kw_only=True)
class SlimResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        stages: A row for each complete stage that leaves a network, or measured the one that rounds compare with.
        weights: The small network.
        exported: The file for the runtime; None if none was made.
        candidates: Networks that `--start auto` compared, as rows of result.json.
        drop: Rounds under `max_map_drop`, and the one that was taken; None without it.
    """

    folder: Path
    stages: Sequence[StageResult]
    weights: str
    exported: Exported | None
    candidates: Sequence[dict[str, Any]] = ()
    drop: ScoreDrop | None = None

    @classmethod
    def of(cls, config: SlimConfig, folder: Path, stages: Sequence[Stage], *, weights: str) -> SlimResult:
        """Collect what the complete stages of a run have written."""
        uncut = uncut_stage(config, folder)
        made = [stage for stage in (uncut, *stages) if stage.is_complete and stage.network is not None]
        exports = [stage.folder for stage in stages if stage.is_complete and stage.network is None]
        table = folder / LATENCY_NAME
        latency = LatencyTable.load(table) if table.is_file() else None
        task = task_of(data=config.data, weights=weights)
        return cls(
            folder=folder,
            stages=[_row(stage, folder, task, img_size=config.test_size, table=latency) for stage in made],
            weights=weights,
            exported=Exported.of(exports[0]) if exports else None,
            candidates=compared(config, folder),
            drop=ScoreDrop.load(folder),
        )

    @property
    def passed(self) -> bool:
        """Whether the exported network agrees with the network; True if none was exported or could run."""
        return self.exported is None or self.exported.passed is not False

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        stages = [row.to_dict() for row in self.stages]
        values = {"stages": stages, "weights": self.weights, "export": self.exported and plain(self.exported)}
        values |= {"candidates": list(self.candidates)} if self.candidates else {}
        return values | ({"max_map_drop": self.drop.to_dict()} if self.drop else {})

    def as_text(self) -> str:
        """Return the table, and where everything is."""
        lines = [slim_table(self.stages)] if self.stages else []
        is_small = self.drop is None or self.drop.taken is not None
        lines += [self.drop.reason] if self.drop else []
        lines.append(f"the {'small' if is_small else 'dense'} network: {self.weights}")
        if self.exported is not None:
            lines.append(self.exported.as_text())
        return "\n".join([*lines, f"results in {self.folder}"])


def _row(stage: Stage, folder: Path, task: Task, *, img_size: int, table: LatencyTable | None) -> StageResult:
    """Measure the network that a complete stage left, and read its scores."""
    assert stage.network is not None
    weights = stage.network(stage.folder)
    network, metrics = task.load(weights), _metrics(stage)
    image_chw = task.image_chw(network, img_size)
    milliseconds = predicted_ms(network, table, image_chw=image_chw)
    size = NetworkSize.of(network.model, image_chw, milliseconds=milliseconds)
    return StageResult(
        stage=stage.folder.relative_to(folder).as_posix(),
        weights=weights,
        scores={name: metrics[name] for name in task.columns.headline},
        parameters=size.parameters,
        macs=size.macs,
        megabytes=size.megabytes,
        milliseconds=milliseconds,
    )


def _metrics(stage: Stage) -> dict[str, Any]:
    """Return the numbers of the network that a stage left: those of last.pt for sparse training, else of best.pt."""
    result = stage.result
    if stage.name == "prune":
        return dict(result["after"])
    if stage.name != "sparse":
        return dict(result["metrics"])
    cut = stage.folder.with_name("prune")
    return dict(_read(cut)["before"] if (cut / "result.json").exists() else result["final"])


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return content
