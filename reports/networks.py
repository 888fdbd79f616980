"""The networks of a run, one after each stage: scores in all and by class, and sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reports.reading import FINETUNE, PRUNE, SPARSE, UNCUT, SlimRun, Stage

# Scores for the tables, the one that decides last, by a name that the results of the task have.
HEADLINES: Mapping[str, tuple[str, ...]] = {"accuracy": ("accuracy",), "AP": ("AP50", "AP")}
TASKS: Mapping[str, str] = {"accuracy": "classification", "AP": "detection"}
_SIZES = ("parameters", "macs", "megabytes", "milliseconds")


@dataclass(frozen=True, kw_only=True)
class NetworkRow:
    """A network after a stage.

    Attributes:
        stage: Name of the stage, such as "round1/finetune", or "uncut".
        weights: Its checkpoint, below the run folder; that of "uncut" as the cut was given it.
        scores: Headline scores on val, by name; empty where the stage did not measure.
        classes: The same by class name.
        images: Number of images that it was measured on.
        size: Parameters, multiply-adds, megabytes in float32, and predicted milliseconds where a table was used.
        training: Epochs and seconds of the stage; empty for a cut.
    """

    stage: str
    weights: str
    scores: Mapping[str, float | None]
    classes: Mapping[str, Mapping[str, float | None]]
    images: int | None
    size: Mapping[str, float]
    training: Mapping[str, float]

    @property
    def score(self) -> float | None:
        """The score that decides, mAP50-95 or accuracy."""
        return list(self.scores.values())[-1] if self.scores else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for report.json."""
        named = {"stage": self.stage, "weights": self.weights, "scores": dict(self.scores), "images": self.images}
        return {**named, **self.size, **self.training}


def task_key(run: SlimRun) -> str:
    """Return the name by which the results of the run's task are known, "AP" or "accuracy"."""
    for stage in run.stages:
        metrics = stage.result.get("metrics") or stage.result.get("after") or {}
        for key in HEADLINES:
            if key in metrics:
                return key
    return "AP"


def network_rows(run: SlimRun) -> list[NetworkRow]:
    """Return a row for each finished stage, and for the network before the first cut where none of them left it.

    The network that sparse training leaves is measured by the cut, as is the size of all; a network that was not cut
    yet has the scores of its best epoch.
    """
    key = task_key(run)
    rows = [_row(run, stage, key) for stage in run.stages]
    first = run.stages[0]
    # Without a training before it, the first cut alone knows the network that the run began with.
    return [_uncut(first, key), *rows] if first.kind == PRUNE else rows


def _row(run: SlimRun, stage: Stage, key: str) -> NetworkRow:
    cuts = run.of_kind(PRUNE)
    # Training changes no width: a dense network has the size that the first cut found.
    cut = run.in_round(stage, PRUNE) if stage.round else next(iter(cuts), None)
    is_cut = stage.kind in (PRUNE, FINETUNE)
    # A cut by a plan predicts no times; the run does, by its own latency table.
    size = {**_listed(run, stage), **(cut.value("report")["after" if is_cut else "before"] if cut else {})}
    weights = _trained_weights(stage)
    if stage.kind == PRUNE:
        metrics, weights = stage.result.get("after"), Path(str(stage.value("checkpoint"))).name
    elif stage.kind == SPARSE and cut and cut.result.get("before"):
        metrics, weights = cut.value("before"), "weights/last.pt"
    else:
        metrics = stage.value("metrics")
    training: dict[str, float] = {n: stage.result[n] for n in ("epochs", "seconds") if n in stage.result}
    where = str(run.settings.get("weights", "")) if stage.kind == UNCUT else f"{stage.name}/{weights}"
    return _measured(stage.name, metrics or {}, size, key=key, weights=where, training=training)


def _uncut(cut: Stage, key: str) -> NetworkRow:
    """Return the network that a cut was made from."""
    settings = cut.result.get("config") or cut.settings
    return _measured(
        UNCUT,
        cut.result.get("before") or {},
        cut.value("report")["before"],
        key=key,
        weights=str(settings.get("weights", "")),
    )


def _measured(
    stage: str,
    metrics: Mapping[str, Any],
    size: Mapping[str, Any],
    *,
    key: str,
    weights: str,
    training: Mapping[str, float] | None = None,
) -> NetworkRow:
    """Return the row of a network with these metrics and sizes; those that do not exist are left out."""
    return NetworkRow(
        stage=stage,
        weights=weights,
        scores={name: metrics[name] for name in HEADLINES[key] if name in metrics},
        classes=_by_class(metrics.get("per_class") or {}, HEADLINES[key]),
        images=metrics.get("images"),
        size={name: size[name] for name in _SIZES if size.get(name) is not None},
        training=training or {},
    )


def _listed(run: SlimRun, stage: Stage) -> dict[str, Any]:
    """Return the row of a stage in the result of the whole run, which has sizes; empty where there is none."""
    rows = run.result.get("stages") or []
    return next((row for row in rows if row.get("stage") == stage.name), {})


def _trained_weights(stage: Stage) -> str:
    """Return the best checkpoint of a training; the last one where no other was kept."""
    return "weights/best.pt" if (stage.path / "weights/best.pt").exists() else "weights/last.pt"


def _by_class(found: Any, names: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    """Return the scores of each class; detectors list them by name, classifiers in rows."""
    rows = found.items() if isinstance(found, dict) else ((row["name"], row) for row in found)
    return {str(name): {score: values[score] for score in names if score in values} for name, values in rows}


def layers_of(run: SlimRun) -> list[dict[str, Any]]:
    """Return the output channels of each layer before the first cut and after each one, 0 for a removed layer.

    A cut that is not shipped, because it lost too much, is left out.
    """
    reports = [cut.value("report") for cut in run.cuts]
    if not reports:
        return []
    return [
        {
            "layer": name,
            "before": width,
            "after": [report["after"]["widths"].get(name, 0) for report in reports],
        }
        for name, width in reports[0]["before"]["widths"].items()
    ]
