"""An evaluation as a table, as JSON, and as plots in a run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.evaluation.evaluate import Evaluation
from utils.boxes.boxes import unletterbox, xyxy_to_cxcywh
from utils.datasets.loading.batch import Batch
from utils.detections.output_names import OutputNames
from utils.metrics.coco import number_text
from utils.plots.batches import plot_labels, plot_predictions
from utils.plots.curves import plot_confusion, plot_curves
from utils.storage.files import write_text

Array = np.ndarray[Any, Any]

MAX_CLASSES_SHOWN = 20
NUM_SAMPLE_BATCHES = 3


def result_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return the evaluation's part of result.json: the twelve COCO metrics, `per_class`, seconds and counts."""
    return {
        **evaluation.metrics.to_dict(),
        "images": evaluation.images,
        "boxes": evaluation.boxes,
        "detections": len(evaluation.rows),
        "seconds": evaluation.seconds,
    }


def metrics_table(evaluation: Evaluation, *, names: Sequence[str], verbose: bool = False) -> str:
    """Format a table of the totals and, if `verbose` or at most 20 classes, of each class with true boxes."""
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
    """Format the milliseconds per image of each stage."""
    count = max(evaluation.images, 1)
    stages = ", ".join(f"{name} {1000 * spent / count:.1f}" for name, spent in evaluation.seconds.items())
    return f"ms per image: {stages}"


def save_evaluation(evaluation: Evaluation, folder: Path, *, names: Sequence[str]) -> None:
    """Write predictions.json, and plot the curves and the confusion matrix."""
    # Not indented, since there can be a million boxes.
    write_text(folder / "predictions.json", json.dumps(evaluation.detections))
    plot_curves(evaluation.curves, folder, names=names)
    plot_confusion(evaluation.confusion, folder / "confusion_matrix.png", names=names)


@dataclass(frozen=True, kw_only=True)
class SamplePictures:
    """Draws val_batchN_labels.jpg and val_batchN_pred.jpg for the first three batches, as an `on_batch`."""

    folder: Path
    names: Sequence[str]

    def __call__(self, step: int, batch: Batch, boxes: Sequence[Array]) -> None:
        if step < NUM_SAMPLE_BATCHES:
            plot_labels(batch, self.folder / f"val_batch{step}_labels.jpg", names=self.names)
            plot_predictions(batch, boxes, self.folder / f"val_batch{step}_pred.jpg", names=self.names)


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """Writes a txt file per image, as an `on_batch`: class, normalised cx, cy, w, h, and optionally the score.

    Attributes:
        folder: Run folder; the files are written to its `labels`.
        names: Output names of all images of the data set.
        with_score: Whether to add the score to each line.
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
