"""An evaluation as a table, as JSON and as pictures in a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.evaluate import Evaluation
from utils.batch import Batch
from utils.boxes import unletterbox, xyxy_to_cxcywh
from utils.files import write_text
from utils.metrics.coco import number_text
from utils.output_names import OutputNames
from utils.plots.batches import plot_labels, plot_predictions
from utils.plots.curves import plot_confusion, plot_curves

Array = np.ndarray[Any, Any]

MAX_CLASSES_SHOWN = 20
NUM_SAMPLE_BATCHES = 3


def result_of(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation's part of result.json: the twelve numbers at the top, `per_class`, seconds, counts."""
    return {
        **evaluation.metrics.to_dict(),
        "images": evaluation.images,
        "boxes": evaluation.boxes,
        "detections": len(evaluation.rows),
        "seconds": evaluation.seconds,
    }


def metrics_table(evaluation: Evaluation, *, names: Sequence[str], verbose: bool = False) -> str:
    """Lines of the totals and, for at most 20 classes or when `verbose`, of every class that has true boxes."""
    metrics, curves = evaluation.metrics, evaluation.curves
    width = max(8, *(len(name) for name in names))
    lines = [f"{'class':>{width}} {'boxes':>8} {'P':>7} {'R':>7} {'AP50':>7} {'AP':>7}"]

    def add(name: str, boxes: int, *numbers: float) -> None:
        lines.append(f"{name:>{width}} {boxes:8d} " + " ".join(f"{number_text(number):>7}" for number in numbers))

    add("all", evaluation.boxes, metrics.precision, metrics.recall, metrics.AP50, metrics.AP)
    if verbose or len(names) <= MAX_CLASSES_SHOWN:
        at = int(np.searchsorted(curves.confidence, np.nan_to_num(metrics.confidence)))
        for row, class_id in enumerate(curves.classes):
            name = names[int(class_id)]
            ap = metrics.per_class[name]
            precision = curves.precision[row, at] if curves.is_found[row, at] else math.nan
            recall = curves.recall[row, at]
            add(name, int(curves.num_true[row]), precision, recall, ap["AP50"], ap["AP"])
    if not math.isnan(metrics.confidence):
        lines.append(f"P and R at confidence {metrics.confidence:.3f}, where the mean F1 is best")
    return "\n".join(lines)


def speed_line(evaluation: Evaluation) -> str:
    """Milliseconds per image of each stage."""
    count = max(evaluation.images, 1)
    stages = ", ".join(f"{name} {1000 * spent / count:.1f}" for name, spent in evaluation.seconds.items())
    return f"ms per image: {stages}"


def save_evaluation(evaluation: Evaluation, folder: Path, *, names: Sequence[str]) -> None:
    """Write predictions.json, the curves and the confusion matrix."""
    # Without indentation: there can be a million boxes.
    write_text(folder / "predictions.json", json.dumps(evaluation.detections))
    plot_curves(evaluation.curves, folder, names=names)
    plot_confusion(evaluation.confusion, folder / "confusion_matrix.png", names=names)


@dataclass(frozen=True, kw_only=True)
class SamplePictures:
    """Draws the first three batches: val_batchN_labels.jpg and val_batchN_pred.jpg. An `on_batch` of `evaluate`."""

    folder: Path
    names: Sequence[str]

    def __call__(self, step: int, batch: Batch, boxes: Sequence[Array]) -> None:
        if step < NUM_SAMPLE_BATCHES:
            plot_labels(batch, self.folder / f"val_batch{step}_labels.jpg", names=self.names)
            plot_predictions(batch, boxes, self.folder / f"val_batch{step}_pred.jpg", names=self.names)


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """Writes a txt per image: class, cx, cy, w, h normalised, and the score if asked. An `on_batch` of `evaluate`.

    Attributes:
        folder: The run folder; the files lie in its `labels`.
        names: Of all images of the data set.
        with_score: Add the score to each line.
    """

    folder: Path
    names: OutputNames
    with_score: bool = False

    def __call__(self, step: int, batch: Batch, boxes: Sequence[Array]) -> None:
        for info, own in zip(batch.infos, boxes, strict=True):
            height, width = info.original_hw
            xyxy = unletterbox(own[:, :4], scale=info.scale, padding=info.padding, original_hw=info.original_hw)
            cxcywh = xyxy_to_cxcywh(xyxy) / np.array([width, height, width, height])
            lines = [
                " ".join(
                    [f"{row[5]:.0f}", *(f"{value:.6g}" for value in place)] + [f"{row[4]:.5g}"] * self.with_score
                )
                for place, row in zip(cxcywh, own, strict=True)
            ]
            write_text(self.folder / self.names.label(info.path), "".join(line + "\n" for line in lines))
