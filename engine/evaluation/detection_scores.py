"""Scores of a detector: COCO metrics, curves and confusion matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.evaluation.evaluator import StageClock
from utils.boxes.boxes import unletterbox
from utils.boxes.nms import check_thresholds, non_max_suppression
from utils.config.choices import Engine
from utils.datasets.indexing.index import LabelIndex
from utils.datasets.loading.batch import Batch
from utils.metrics.coco import Metrics, evaluate_coco, fitness, number_text
from utils.metrics.confusion import confusion_matrix
from utils.metrics.curves import Curves, confidence_curves
from utils.metrics.ground_truth import (
    coco_results,
    detection_rows,
    ground_truth_from_index,
    true_boxes,
    with_exact_ids,
)
from utils.plots.curves import plot_confusion, plot_curves
from utils.storage.files import write_text

Array = np.ndarray[Any, Any]

# Most classes that a table lists unasked.
MAX_CLASSES_SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Settings by which boxes are found and scored.

    Attributes:
        conf: Minimum score of a box, 0 to 1.
        iou: IoU threshold of NMS, 0 to 1.
        max_det: Maximum number of boxes per image.
        single_cls: Treat all predictions as class 0; the index must have been built with the same setting.
        engine: Package that computes the COCO metrics.
        hybrid_labels: Add the true boxes to the predictions with score 1 before NMS (v5.0's --save-hybrid, for
            autolabelling); the metrics are then meaningless.
        augment: Whether to use test-time augmentation.
        rect: Whether to pad each image only to the next multiple of the stride, not to a square.
    """

    conf: float = 0.001
    iou: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    engine: Engine = "faster"
    hybrid_labels: bool = False
    augment: bool = False
    rect: bool = True

    def __post_init__(self) -> None:
        check_thresholds(conf=self.conf, iou=self.iou, max_det=self.max_det)


@dataclass(frozen=True, kw_only=True)
class DetectionScores:
    """Results of an evaluation.

    Attributes:
        names: Class names by id.
        metrics: COCO metrics, and precision, recall and F1 at the best confidence.
        curves: Curves over confidence at IoU 0.5.
        confusion: Counts (K + 1, K + 1): rows are predicted classes, columns true ones, background last.
        rows: All boxes found (N, 7), as returned by `utils.metrics.ground_truth.detection_rows`.
        sources: Id in the data set and name of each image, by its id in `rows`.
        category_ids: Id in the data set of each category, by its id in `rows`.
        seconds: Time per stage: "preprocess", "inference", "nms", "metrics".
        images: Number of images evaluated.
        boxes: Number of true boxes in them.
    """

    names: tuple[str, ...]
    metrics: Metrics
    curves: Curves
    confusion: Array
    rows: Array
    sources: Mapping[int, tuple[int, str]]
    category_ids: Mapping[int, int]
    seconds: dict[str, float]
    images: int
    boxes: int

    @property
    def detections(self) -> list[dict[str, Any]]:
        """All boxes found, as entries of a COCO results file."""
        return coco_results(self.rows, self.sources, self.category_ids)

    @property
    def is_finite(self) -> bool:
        """True: boxes that are no numbers are not found."""
        return True

    @property
    def score(self) -> float:
        """mAP50-95."""
        return self.metrics.AP

    @property
    def fitness(self) -> float:
        """v5.0's weighted mean of mAP50 and mAP50-95."""
        return fitness(self.metrics)

    @property
    def headline(self) -> dict[str, float]:
        """mAP50 and mAP50-95."""
        return {"AP50": self.metrics.AP50, "AP": self.metrics.AP}

    def numbers(self) -> dict[str, float]:
        """Return the twelve COCO metrics, precision and recall, without those that do not exist."""
        found = {**self.metrics.twelve(), "precision": self.metrics.precision, "recall": self.metrics.recall}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def to_dict(self) -> dict[str, Any]:
        """Return the twelve COCO metrics, `per_class`, seconds and counts."""
        return {
            **self.metrics.to_dict(),
            "images": self.images,
            "boxes": self.boxes,
            "detections": len(self.rows),
            "seconds": self.seconds,
        }

    def as_text(self, *, is_verbose: bool = False) -> str:
        """Format a table of the totals and, if `is_verbose` or at most 20 classes, of each class with true boxes."""
        metrics, curves, names = self.metrics, self.curves, self.names
        width = max(8, *(len(name) for name in names))
        lines = [f"{'class':>{width}} {'boxes':>8} {'P':>7} {'R':>7} {'AP50':>7} {'AP':>7}"]

        def add(name: str, boxes: int, *numbers: float) -> None:
            lines.append(f"{name:>{width}} {boxes:8d} " + " ".join(f"{number_text(value):>7}" for value in numbers))

        add("all", self.boxes, metrics.precision, metrics.recall, metrics.AP50, metrics.AP)
        if is_verbose or len(names) <= MAX_CLASSES_SHOWN:
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

    def save(self, folder: Path) -> None:
        """Write predictions.json, and plot the curves and the confusion matrix."""
        # Not indented, since there can be a million boxes.
        write_text(folder / "predictions.json", json.dumps(self.detections))
        plot_curves(self.curves, folder, names=self.names)
        plot_confusion(self.confusion, folder / "confusion_matrix.png", names=self.names)


class DetectionScorer:
    """Suppresses overlapping boxes and compares the rest with the true ones."""

    def __init__(self, index: LabelIndex, settings: EvalSettings, clock: StageClock) -> None:
        """Score for `index`, into which `ImageInfo.index` of the batches points, each image at most once."""
        self._index, self._settings, self._clock = index, settings, clock
        self._found: dict[int, Array] = {}

    def add(self, batch: Batch, outputs: Tensor) -> list[Array]:
        """Return, for each image, rows (n, 6) of xyxy in pixels of the batch, score, class, on the CPU."""
        settings = self._settings
        with self._clock.stage("nms"):
            decoded = _with_true_boxes(outputs, batch) if settings.hybrid_labels else outputs
            kept = non_max_suppression(
                decoded,
                conf=settings.conf,
                iou=settings.iou,
                max_det=settings.max_det,
                multi_label=True,
                agnostic=settings.single_cls,
            )
            # One copy from the device for the whole batch.
            together = torch.cat(kept).cpu().numpy()
        if settings.single_cls:
            together[:, 5] = 0
        boxes: list[Array] = np.split(together, np.cumsum([len(own) for own in kept])[:-1])
        for info, own in zip(batch.infos, boxes, strict=True):
            xyxy = unletterbox(own[:, :4], scale=info.scale, padding=info.padding, original_hw=info.original_hw)
            self._found[info.index] = np.concatenate([xyxy, own[:, 4:]], 1)
        return boxes

    def scores(self) -> DetectionScores:
        """Compare the boxes found with the index; an image that was not seen has none."""
        with self._clock.stage("metrics"):
            scores = self._scores(self._index)
        return replace(scores, seconds=dict(self._clock.seconds))

    def _scores(self, index: LabelIndex) -> DetectionScores:
        nothing = np.zeros((0, 6), np.float32)
        predictions = [self._found.get(i, nothing) for i in range(len(index.paths))]
        truths = true_boxes(index)
        counted = with_exact_ids(index)
        rows = np.concatenate(
            [np.zeros((0, 7))]
            + [
                detection_rows(boxes, image_id=image_id, category_ids=counted.category_ids)
                for boxes, image_id in zip(predictions, counted.image_ids, strict=True)
            ]
        )
        metrics = evaluate_coco(ground_truth_from_index(counted), rows, engine=self._settings.engine)
        crowds = true_boxes(index, crowds=True)
        curves = confidence_curves(predictions, truths, crowds)
        best = curves.best()
        return DetectionScores(
            names=tuple(index.names),
            metrics=replace(
                metrics, precision=best.precision, recall=best.recall, f1=best.f1, confidence=best.confidence
            ),
            curves=curves,
            confusion=confusion_matrix(predictions, truths, crowds, num_classes=len(index.names)),
            rows=rows,
            sources=dict(zip(counted.image_ids, zip(index.image_ids, index.file_names, strict=True), strict=True)),
            category_ids=dict(zip(counted.category_ids, index.category_ids, strict=True)),
            seconds={},
            images=len(index.paths),
            boxes=sum(len(labels) for labels in truths),
        )


def _with_true_boxes(decoded: Tensor, batch: Batch) -> Tensor:
    """Append each image's true boxes, with objectness and class probability 1, to `decoded` (B, N, 5 + nc)."""
    height, width = batch.images.shape[2:]
    size = decoded.new_tensor([width, height, width, height])
    number = batch.targets[:, 0].long()
    counts = torch.bincount(number, minlength=len(batch))
    extra = decoded.new_zeros(len(batch), int(counts.max()), decoded.shape[2])  # objectness 0: no box
    for image in range(len(batch)):
        own = batch.targets[number == image].to(decoded.dtype)
        extra[image, : len(own), :4] = own[:, 2:6] * size
        extra[image, : len(own), 4] = 1
        extra[image, torch.arange(len(own), device=own.device), 5 + own[:, 1].long()] = 1
    return torch.cat((decoded, extra), 1)
