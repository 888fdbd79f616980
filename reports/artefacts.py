"""The exported files of a run, as export.py verified them, and what to ship."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploy.formats import name_of
from deploy.layer_errors import LAYERS_NAME
from reports.networks import NetworkRow
from reports.reading import FINETUNE, PRUNE, SlimRun, read_json

_TABLE_NAME = "latency.json"
# Layers of an int8 file that are listed.
_MOST_LAYERS = 8


def artefact_rows(run: SlimRun) -> list[dict[str, Any]]:
    """Return a row for each verified artefact, then one for each that could not run on the machine that built it."""
    rows = []
    for export in run.exports:
        settings = export.result.get("config") or export.settings
        stage = run.stage_of(str(settings.get("weights", "")))
        common = {
            "export": export.name,
            "stage": stage.name if stage else None,
            "weights": str(settings.get("weights", "")),
            "image_size": settings.get("img_size"),
            "batch_size": settings.get("batch_size"),
        }
        images = int(settings.get("batch_size") or 1)
        timed = {row["path"]: row for row in export.result.get("beside") or []}
        for report in export.value("reports"):
            beside = _beside(timed[report["path"]]) if report["path"] in timed else {}
            rows.append({**common, **_verified(report, images=images), **beside})
        rows += [{**common, "path": path, "passed": None} for path in export.result.get("not_run") or []]
    return rows


def _verified(report: dict[str, Any], *, images: int) -> dict[str, Any]:
    """Return the numbers of one comparison, times for one of the `images` of a call; without those not measured."""
    row = {
        "path": report["path"],
        "format": name_of(report["format"]),
        "precision": report["precision"],
        "passed": report["passed"],
        "failures": report.get("failures") or [],
        "megabytes": report["megabytes"][1],
        "network_megabytes": report["megabytes"][0],
    }
    times = report.get("latency") or []
    if len(times) == 2 and all(isinstance(own, dict) for own in times):
        network, own = times
        row |= {"milliseconds": own["fastest"] / images, "median_ms": own["median"] / images}
        row |= {"network_ms": network["fastest"] / images, "threads": own["threads"]}
    measured = report.get("ap") or report.get("accuracy")
    if measured:
        row |= {"network_score": measured[0], "score": measured[1]}
    if "heads" in report:
        row["output_error"] = max(head["largest"] for head in report["heads"])
        row |= {"same_boxes": report["same_boxes"], "compared_boxes": report["boxes"]["expected"]}
    elif "logits_error" in report:
        row["output_error"] = report["logits_error"]
    return row


def _beside(timed: dict[str, Any]) -> dict[str, Any]:
    """Return the time of an artefact and of the network that was called in turns with it, for one image."""
    others = [{**other, "milliseconds": other["milliseconds"] / timed["batch_size"]} for other in timed["others"]]
    return {"beside": {"milliseconds": timed["milliseconds"] / timed["batch_size"], "others": others}}


def rounding_rows(run: SlimRun) -> list[dict[str, Any]]:
    """Return, for each int8 file, the layers in which rounding costs most, and the plot of all."""
    found = []
    for export in run.exports:
        for path in sorted(export.path.glob(f"{LAYERS_NAME}_*.json")):
            layers = read_json(path)
            worst = sorted(layers, key=lambda layer: -layer["share"])[:_MOST_LAYERS]
            plot = path.with_suffix(".png")
            own: dict[str, Any] = {"export": export.name, "layers": worst, "rounded": len(layers)}
            own["format"] = path.stem.removeprefix(f"{LAYERS_NAME}_")
            found.append({**own, "plot": str(plot.relative_to(run.path))} if plot.is_file() else own)
    return [row for row in found if row["layers"]]


def to_ship(artefacts: Sequence[dict[str, Any]], stage: str) -> dict[str, Any] | None:
    """Return the artefact of a stage's network to ship: the fastest that passed its verification.

    Where none passed, it is one that failed, which the page says; where none was measured, the first.
    """
    own = [row for row in artefacts if row["stage"] == stage]
    passed = [row for row in own if row["passed"]]
    timed = [row for row in passed if "milliseconds" in row]
    return min(timed, key=lambda row: float(row["milliseconds"])) if timed else next(iter(passed or own), None)


def predicted_on(run: SlimRun) -> dict[str, Any] | None:
    """Return on what the milliseconds of a run were predicted; None where it did not cut to milliseconds."""
    cut = next(iter(run.of_kind(PRUNE)), None)
    if cut is not None and "milliseconds" in cut.value("report")["after"]:
        settings, table = cut.result.get("config") or cut.settings, cut.read(_TABLE_NAME) or {}
    elif (path := run.path / _TABLE_NAME).is_file():
        settings, table = run.settings, read_json(path)
    else:
        return None
    conditions = {name: settings.get(name) for name in ("runtime", "precision", "threads")}
    return {**conditions, "machine": table.get("machine", ""), "version": table.get("version", "")}


def candidate_rows(
    run: SlimRun, rows: Sequence[NetworkRow], artefacts: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return all networks of the run that have a score and a time: predicted, measured, and what it could start from.

    A network right after a cut is one only until it is fine-tuned. A run's result.json may list `candidates`: rows
    with "name", "score", "milliseconds", and any of the conditions.
    """
    found = _predicted(run, rows)
    for artefact in artefacts:
        if "score" not in artefact or "milliseconds" not in artefact:
            continue
        stage, time = artefact["stage"] or Path(artefact["weights"]).stem, {"threads": artefact["threads"]}
        own = {"runtime": artefact["format"], "precision": artefact["precision"], **time}
        row = _candidate(stage, artefact["score"], artefact["milliseconds"], **own)
        found.append({**row, "passed": artefact["passed"]})
        if not any(row["name"] == stage and row["runtime"] == "pytorch" for row in found):
            network = {"runtime": "pytorch", "precision": "fp32", **time}
            found.append(_candidate(stage, artefact["network_score"], artefact["network_ms"], **network))
    for given in run.result.get("candidates") or []:
        if all(given.get(name) is not None for name in ("name", "score", "milliseconds")):
            unknown = {"is_predicted": False, "runtime": None, "precision": None, "threads": None}
            found.append({**unknown, **given, "is_alternative": True})
    return found


def _predicted(run: SlimRun, rows: Sequence[NetworkRow]) -> list[dict[str, Any]]:
    """Return the networks whose times the latency table of the first cut predicts."""
    conditions = predicted_on(run)
    if conditions is None:
        return []
    time = {name: conditions[name] for name in ("runtime", "precision", "threads")}
    replaced = {f"{stage.round}/{PRUNE}" for stage in run.of_kind(FINETUNE)}
    return [
        _candidate(row.stage, row.score, row.size["milliseconds"], is_predicted=True, **time)
        for row in rows
        if row.score is not None and "milliseconds" in row.size and row.stage not in replaced
    ]


def _candidate(
    name: str, score: float, milliseconds: float, *, is_predicted: bool = False, **conditions: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "score": score,
        "milliseconds": milliseconds,
        "is_predicted": is_predicted,
        **conditions,
    }
