"""The content of a report as plain data: what report.json contains, and all that report.html shows."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reports.artefacts import artefact_rows, candidate_rows, predicted_on, rounding_rows, to_ship
from reports.boxes import FoundBoxes
from reports.networks import HEADLINES, TASKS, NetworkRow, layers_of, network_rows, task_key
from reports.reading import FINETUNE, PRUNE, SPARSE, SlimRun, Stage
from utils.metrics.bootstrap import Interval, accuracy_interval

FORMAT_VERSION = 1
# Parts of a report that a run may have no data for.
SECTIONS = (
    *("answer", "networks", "timing", "classes", "artefacts", "rounding", "candidates", "scales", "layers", "scans"),
    *("examples", "commands", "environments"),
)
# Epochs of a sparse training whose histograms are shown, the first and the last always.
_MOST_RIDGES = 24

Intervals = Mapping[str, Mapping[str, Interval]]


def report_content(run: SlimRun) -> dict[str, Any]:
    """Collect everything that the folder of a run tells; a section without data is left out.

    Raises:
        ConfigError: A file of the run is damaged.
    """
    key, rows = task_key(run), network_rows(run)
    boxes = FoundBoxes.read(run) if key == "AP" else None
    reference, final = rows[0], _final(run, rows)
    intervals = _intervals(rows, boxes, reference=reference.stage)
    artefacts = artefact_rows(run)
    sections = {
        "answer": _answer(run, reference, final, artefacts=artefacts, intervals=intervals),
        "networks": [{**row.to_dict(), **intervals.get(row.stage, {})} for row in rows],
        "timing": predicted_on(run),
        "classes": _classes(rows),
        "artefacts": artefacts,
        "rounding": rounding_rows(run),
        "candidates": candidate_rows(run, rows, artefacts),
        "scales": _scales(run),
        "layers": layers_of(run),
        "scans": _scans(run),
        "examples": _examples(run, boxes, final),
        "commands": _commands(run),
        "environments": _environments(run),
    }
    return {
        "format": FORMAT_VERSION,
        "run": str(run.path),
        "task": TASKS[key],
        "scores": list(HEADLINES[key]),
        "data": run.settings.get("data", ""),
        "settings": run.settings,
        **{name: value for name, value in sections.items() if value},
    }


def _final(run: SlimRun, rows: Sequence[NetworkRow]) -> NetworkRow:
    """Return the network that the run is about: the last fine-tuned one, else the last that was cut.

    Where `max_map_drop` ended the rounds it is the one that was taken, which may be the dense one.
    """
    if run.drop is not None:
        taken = f"round{run.drop.taken.number}/{FINETUNE}" if run.drop.taken else rows[0].stage
        rows = [row for row in rows if row.stage == taken] or rows
    for kind in (FINETUNE, PRUNE):
        of_kind = [row for row in rows if row.stage.endswith(f"/{kind}")]
        if of_kind:
            return of_kind[-1]
    return rows[-1]


def _intervals(rows: Sequence[NetworkRow], boxes: FoundBoxes | None, *, reference: str) -> Intervals:
    """Return the intervals over images that the run's files allow, by stage."""
    scores = {row.stage: row.score for row in rows}
    if boxes is not None:
        # A sparse network is measured after its last epoch, and its boxes are those of its best one.
        trained = {stage: score for stage, score in scores.items() if not stage.endswith(f"/{SPARSE}")}
        return boxes.intervals(trained, reference=reference)
    return {
        row.stage: {"interval": accuracy_interval(row.score, row.images)}
        for row in rows
        if "accuracy" in row.scores and row.score is not None and row.images
    }


def _answer(
    run: SlimRun,
    reference: NetworkRow,
    final: NetworkRow,
    *,
    artefacts: Sequence[dict[str, Any]],
    intervals: Intervals,
) -> dict[str, Any]:
    """Say what to ship, and how it compares with the network before the first cut."""
    answer: dict[str, Any] = {
        "stage": final.stage,
        "weights": final.weights,
        "reference": reference.stage,
        "is_pruned": bool(run.cuts) and reference is not final,
        "is_finetuned": final.stage.endswith(f"/{FINETUNE}"),
        "ship": to_ship(artefacts, final.stage),
    }
    if run.drop is not None:
        answer["max_map_drop"] = run.drop.to_dict()
    if start := run.result.get("start"):
        answer["start"] = start
    if reference.score is not None and final.score is not None:
        own = intervals.get(final.stage, {})
        answer["score"] = {
            "before": reference.score,
            "after": final.score,
            "difference": final.score - reference.score,
        }
        answer["score"] |= dict(own)
        if final.images:
            answer["images"] = final.images
    for name in ("parameters", "macs", "megabytes"):
        if reference is not final and reference.size.get(name) and final.size.get(name):
            answer[name] = _change(reference.size[name], final.size[name])
    if reference is not final and (time := _times(run, reference, final, artefacts)):
        answer["milliseconds"] = time
    if "target" in (export := run.result.get("export") or {}):
        answer["target"] = export["target"]["text"]
    return answer


def _change(before: float, after: float) -> dict[str, Any]:
    return {"before": before, "after": after, "factor": before / after}


def _times(
    run: SlimRun, reference: NetworkRow, final: NetworkRow, artefacts: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Return times of both networks on one runtime: measured in turns, or on two exports, else predicted."""
    beside = [row for row in artefacts if row["stage"] == final.stage and "beside" in row]
    if beside:
        return _in_turns(to_ship(beside, final.stage) or beside[0])
    alike = ("format", "precision", "threads", "image_size", "batch_size")
    timed = [row for row in artefacts if "milliseconds" in row]
    pairs = [
        (was, now)
        for was in timed
        for now in timed
        if (was["stage"], now["stage"]) == (reference.stage, final.stage) and all(was[n] == now[n] for n in alike)
    ]
    if pairs:
        was, now = min(pairs, key=lambda pair: float(pair[1]["milliseconds"]))
        conditions = {"runtime": now["format"], "precision": now["precision"], "threads": now["threads"]}
        return {**_change(was["milliseconds"], now["milliseconds"]), "is_predicted": False, **conditions}
    predicted = predicted_on(run)
    if predicted and "milliseconds" in reference.size and "milliseconds" in final.size:
        change = _change(reference.size["milliseconds"], final.size["milliseconds"])
        return {**change, "is_predicted": True, **predicted}
    return None


def _in_turns(row: dict[str, Any]) -> dict[str, Any]:
    """Return the times of an artefact and of the dense network that was timed in turns with it."""
    now, (was, *_) = row["beside"]["milliseconds"], row["beside"]["others"]
    conditions = {"runtime": row["format"], "precision": row["precision"], "threads": row["threads"]}
    change = {**_change(was["milliseconds"], now), "is_predicted": False, **conditions}
    return change if was["precision"] == row["precision"] else {**change, "before_precision": was["precision"]}


def _classes(rows: Sequence[NetworkRow]) -> list[dict[str, Any]]:
    """Return the scores of each class after each stage."""
    names = dict.fromkeys(name for row in rows for name in row.classes)
    return [
        {"class": name, "scores": {row.stage: row.classes[name] for row in rows if name in row.classes}}
        for name in names
    ]


def _scales(run: SlimRun) -> list[dict[str, Any]]:
    """Return how the scales of each sparse training fell: verdict, shares near zero, histograms over epochs."""
    found = []
    for stage in run.of_kind(SPARSE):
        for name, own in (stage.read("sparsity.json") or {}).items():
            if not isinstance(own, dict):
                continue
            row = {"stage": stage.name, "scale": name, **{k: own.get(k) for k in ("strength", "verdict", "reason")}}
            row["below_hundredth"] = [epoch.get("below_hundredth") for epoch in own.get("epochs", [])]
            if own.get("ridges"):
                last = len(own["ridges"]) - 1
                shown = np.unique(np.linspace(0, last, min(last + 1, _MOST_RIDGES)).round().astype(int)).tolist()
                row["edges"] = own["edges"]
                row["ridges"] = [{"epoch": epoch, "channels": own["ridges"][epoch]} for epoch in shown]
            elif (stage.path / f"{name}_ridge.png").is_file():
                row["plot"] = f"{stage.name}/{name}_ridge.png"
            found.append(row)
    return found


def _scans(run: SlimRun) -> list[dict[str, Any]]:
    """Return the scores over shares of pruned channels, each with the stage whose network was cut."""
    found = []
    for cut in run.scans:
        settings = cut.result.get("config") or cut.settings
        stage = run.stage_of(str(settings.get("weights", "")))
        found.append({"stage": stage.name if stage else cut.name, **cut.result["scan"]})
    return found


def _examples(run: SlimRun, boxes: FoundBoxes | None, final: NetworkRow) -> dict[str, Any] | None:
    """Compare the last network with the first whose boxes are known."""
    if boxes is None or not run.cuts:
        return None
    first = next(iter(boxes.found))
    return boxes.examples(first, final.stage) if first != final.stage else None


def _commands(run: SlimRun) -> list[dict[str, Any]]:
    """Return each command that the run consists of, once, with the stages that it ran."""
    by_command: dict[str, list[str]] = {}
    for stage in _all_stages(run):
        command = stage.result.get("environment", {}).get("command")
        if command:
            by_command.setdefault(_as_typed(command), []).append(stage.name)
    return [{"command": command, "stages": stages} for command, stages in by_command.items()]


def _as_typed(command: str) -> str:
    """Return a command line as a reader would type it, without the folder of this project's scripts."""
    try:
        first, *arguments = shlex.split(command)
    except ValueError:
        return command
    return shlex.join((["python"] if re.search(r"\.py$", first) else []) + [Path(first).name, *arguments])


def _all_stages(run: SlimRun) -> tuple[Stage, ...]:
    """Return everything that the run folder contains, each once."""
    return (*run.stages, *run.exports, *(scan for scan in run.scans if scan not in run.stages))


def _environments(run: SlimRun) -> list[dict[str, Any]]:
    """Return the machines and versions that the stages ran with, each once."""
    found: list[dict[str, Any]] = []
    for stage in _all_stages(run):
        own = {name: value for name, value in stage.result.get("environment", {}).items() if name != "command"}
        same = next((row for row in found if row["environment"] == own), None)
        if same is not None:
            same["stages"].append(stage.name)
        elif own:
            found.append({"stages": [stage.name], "environment": own})
    return found
