"""The table of slim.py: scores and size of the network after each stage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands.prune import CHECKPOINT_NAME
from commands.train_result import best_checkpoint
from engine.evaluation.evaluator import label
from utils.storage.run_folder import plain

SPARSE, PRUNE, FINETUNE = "sparse", "prune", "finetune"


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


def rows_of(place: Path, names: Sequence[str]) -> list[StageResult]:
    """Return the three networks of a round with the scores of these names, from what its stages have written."""
    cut = json.loads((place / PRUNE / "result.json").read_text(encoding="utf-8"))
    tuned = json.loads((place / FINETUNE / "result.json").read_text(encoding="utf-8"))
    before, after = cut["report"]["before"], cut["report"]["after"]

    def row(folder: Path, weights: Path, metrics: dict[str, Any], size: dict[str, Any]) -> StageResult:
        return StageResult(
            stage=f"{folder.parent.name}/{folder.name}",
            weights=weights,
            scores={name: metrics[name] for name in names},
            parameters=size["parameters"],
            macs=size["macs"],
            megabytes=size["megabytes"],
            milliseconds=size.get("milliseconds"),
        )

    return [
        row(place / SPARSE, place / SPARSE / "weights/last.pt", cut["before"], before),
        row(place / PRUNE, place / PRUNE / CHECKPOINT_NAME, cut["after"], after),
        row(place / FINETUNE, best_checkpoint(place / FINETUNE), tuned["metrics"], after),
    ]
