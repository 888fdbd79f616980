"""The result of slim.py: scores and size of the network after each stage, and the file that is shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.prune_latency import LATENCY_NAME, predicted_ms
from commands.slim_candidates import compared, recommendation
from commands.slim_config import SlimConfig
from commands.slim_stages import Stage, result_in
from commands.slim_start import uncut_stage
from deploy.latency.side_by_side import OtherTime
from engine.evaluation.evaluator import label
from pruning.selection.latency import LatencyTable
from pruning.selection.score_drop import ScoreDrop
from pruning.selection.targets import NetworkTimes, TargetCheck, parse_target
from pruning.surgery.report import NetworkSize
from tasks.choose import task_of
from tasks.task import Task
from utils.device import machine_name
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
    lines = [f"{'stage':<18} {names} {'parameters':>12} {'MACs G':>8} {'MB':>7}" + is_timed * " ms predicted"]
    for row in rows:
        scores = " ".join(f"{row.scores[name]:{width}.3f}" for name, width in widths.items())
        line = f"{row.stage:<18} {scores} {row.parameters:12,d} {row.macs / 1e9:8.3f} {row.megabytes:7.2f}"
        lines.append(line if row.milliseconds is None else f"{line} {row.milliseconds:12.2f}")
    return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The file or folder that was made for the runtime.

    Attributes:
        path: Its path.
        passed: Whether it agrees with the network; None if it could not run here.
        milliseconds: Fastest call for one image; None if it could not run here.
        precision: Precision that it computes in; "" if it could not run here.
        threads: Number of threads of that call.
        dense: The network before any cut, timed in turns with it, first in the precision by which the speed-up
            counts; empty if it was not.
        dense_weights: File of that network.
        target: Whether it is as fast as the run was to make it; None where that is not known.
        unchecked: Why it is not known, where the run has a target that is a time; "" otherwise.
    """

    path: Path
    passed: bool | None
    milliseconds: float | None
    precision: str = ""
    threads: int = 0
    dense: Sequence[OtherTime] = ()
    dense_weights: str = ""
    target: TargetCheck | None = None
    unchecked: str = ""

    @classmethod
    def of(cls, folder: Path) -> Exported:
        """Read what export.py wrote into its run folder."""
        result = result_in(folder)
        if not result["reports"]:
            return cls(path=Path(result["not_run"][0]), passed=None, milliseconds=None)
        report = result["reports"][0]
        own = report["latency"][1]
        values: dict[str, Any] = {"milliseconds": own["fastest"], "threads": own["threads"]}
        for timed in result.get("beside") or []:  # results of before have none
            values["milliseconds"] = timed["milliseconds"]
            values |= {"dense": [OtherTime(**other) for other in timed["others"]], "dense_weights": timed["weights"]}
        return cls(path=Path(report["path"]), passed=report["passed"], precision=report["precision"], **values)

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the dense network it is, measured; None if both could not be timed here."""
        return self.dense[0].speedup if self.dense else None

    def times(self) -> NetworkTimes | None:
        """Return its time, and that of the dense network in the same precision; None if it could not run here."""
        if self.milliseconds is None:
            return None
        alike = (other.milliseconds for other in self.dense if other.precision == self.precision)
        return NetworkTimes(now=self.milliseconds, before=next(alike, None))

    def checked(self, target: str, predicted: NetworkTimes, table: LatencyTable) -> Exported:
        """Return the same, held against the target of the run; a target that is no time changes nothing.

        Args:
            target: Target of the run; "" if it has none.
            predicted: Times that the run planned by.
            table: Latency table that predicts them.
        """
        if not target or parse_target(target).quantity != "ms":
            return self
        measured, here, reason = self.times(), machine_name(), ""
        if measured is None:
            reason = "this machine cannot run the file"
        elif table.machine != here:
            reason = f"it is for {table.machine}, and this is {here}"
        elif parse_target(target).is_share and measured.before is None:
            reason = "no dense network was timed beside the file"
        if measured is None or reason:
            return replace(self, unchecked=f"target {target} is not checked: {reason}")
        check = TargetCheck(target=target, predicted=predicted, measured=measured, precision=self.precision)
        return replace(self, target=check)

    @property
    def warning(self) -> str:
        """A line for a target that is not met; "" if there is nothing to warn of."""
        return self.target.as_text() if self.target and not self.target.is_met else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for result.json; what was not measured is left out."""
        values: dict[str, Any] = {"path": str(self.path), "passed": self.passed, "milliseconds": self.milliseconds}
        if self.dense:
            values |= {"precision": self.precision, "threads": self.threads, "speedup": self.speedup}
            first = self.dense[0]
            values |= {"dense_ms": first.milliseconds, "dense_precision": first.precision}
            values["dense_weights"] = self.dense_weights
        if self.target or self.unchecked:
            values["target"] = self.target.to_dict() if self.target else {"text": self.unchecked}
        return values

    def as_text(self) -> str:
        """Return lines on the file and its verification, its speed, and a target unless that is a warning."""
        if self.passed is None:
            lines = [f"exported: {self.path}, neither verified nor timed: this machine cannot run it"]
        else:
            verdict = "agrees with the network" if self.passed else "DOES NOT AGREE with the network"
            lines = [f"exported: {self.path}, {self.milliseconds:.2f} ms measured here, {verdict}"]
        if self.dense:
            lines.append(self._side_by_side())
        if self.unchecked or (self.target and not self.warning):
            lines.append(self.target.as_text() if self.target else self.unchecked)
        return "\n".join(lines)

    def _side_by_side(self) -> str:
        """Return a line on its time and that of the dense network, each with its precision."""
        own, dense = self.milliseconds, [f"{other.milliseconds:.2f} ms in {other.precision}" for other in self.dense]
        return (
            f"{self.speedup:.2f} times as fast as the dense network, measured side by side: {own:.2f} ms in "
            f"{self.precision} against {' and '.join(dense)}"
        )


@dataclass(frozen=True, kw_only=True)
class SlimResult:
    """Where a run ended.

    Attributes:
        folder: The run folder.
        stages: A row for each complete stage that leaves a network, or measured the one that rounds compare with.
        weights: The small network.
        exported: The file for the runtime; None if none was made.
        candidates: Networks that `--start auto` compared, as rows of result.json.
        start: Which of them it recommended, and why; None without it.
        drop: Rounds under `max_map_drop`, and the one that was taken; None without it.
    """

    folder: Path
    stages: Sequence[StageResult]
    weights: str
    exported: Exported | None
    candidates: Sequence[dict[str, Any]] = ()
    start: dict[str, Any] | None = None
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
        rows = [_row(stage, folder, task, img_size=config.test_size, table=latency) for stage in made]
        exported = Exported.of(exports[0]) if exports else None
        if exported and latency and (predicted := _predicted(made, rows)):
            exported = exported.checked(config.target, predicted, latency)
        return cls(
            folder=folder,
            stages=rows,
            weights=weights,
            exported=exported,
            candidates=compared(config, folder),
            start=recommendation(folder),
            drop=ScoreDrop.load(folder),
        )

    @property
    def passed(self) -> bool:
        """Whether the exported network agrees with the network; True if none was exported or could run."""
        return self.exported is None or self.exported.passed is not False

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        stages = [row.to_dict() for row in self.stages]
        values = {"stages": stages, "weights": self.weights, "export": self.exported and self.exported.to_dict()}
        values |= {"candidates": list(self.candidates)} if self.candidates else {}
        values |= {"start": self.start} if self.start else {}
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


def _predicted(made: Sequence[Stage], rows: Sequence[StageResult]) -> NetworkTimes | None:
    """Return the times that the latency table of the run predicts for the small network and for the one before it."""
    if not rows or rows[-1].milliseconds is None:
        return None
    is_cut = made[0].name in ("prune", "finetune")
    before = None if is_cut else rows[0].milliseconds
    if made[0].name == "prune":
        before = made[0].result["report"]["before"].get("milliseconds")
    return NetworkTimes(now=rows[-1].milliseconds, before=before)


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
    return dict(result_in(cut)["before"] if (cut / "result.json").exists() else result["final"])
