"""Evaluation of a predictor on a loader: COCO metrics, curves and confusion matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.evaluation.predict import Predict
from utils.boxes.boxes import unletterbox
from utils.boxes.nms import check_thresholds, non_max_suppression
from utils.config.choices import Engine
from utils.datasets.loading.batch import Batch
from utils.metrics.coco import Metrics, evaluate_coco
from utils.metrics.confusion import confusion_matrix
from utils.metrics.curves import Curves, confidence_curves
from utils.metrics.ground_truth import (
    coco_results,
    detection_rows,
    ground_truth_from_index,
    true_boxes,
    with_exact_ids,
)
from utils.progress import SizedIterable, progress

if TYPE_CHECKING:
    from utils.datasets.indexing.index import LabelIndex

Array = np.ndarray[Any, Any]

# Called with the step, the batch, and for each image rows (n, 6) of xyxy in pixels of the batch, score, class.
OnBatch = Callable[[int, Batch, Sequence[Array]], None]


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """Settings of an evaluation.

    Attributes:
        conf: Minimum score of a box, 0 to 1.
        iou: IoU threshold of NMS, 0 to 1.
        max_det: Maximum number of boxes per image.
        single_cls: Treat all predictions as class 0; the index must have been built with the same setting.
        engine: Package that computes the COCO metrics.
        autocast: Dtype of mixed precision, None for none.
        channels_last: Whether images are in channels-last memory format.
        hybrid_labels: Add the true boxes to the predictions with score 1 before NMS (v5.0's --save-hybrid, for
            autolabelling); the metrics are then meaningless.
    """

    conf: float = 0.001
    iou: float = 0.6
    max_det: int = 300
    single_cls: bool = False
    engine: Engine = "faster"
    autocast: torch.dtype | None = None
    channels_last: bool = False
    hybrid_labels: bool = False

    def __post_init__(self) -> None:
        check_thresholds(conf=self.conf, iou=self.iou, max_det=self.max_det)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
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


@torch.inference_mode()
def evaluate(
    predict: Predict,
    loader: SizedIterable[Batch],
    index: LabelIndex,
    *,
    settings: EvalSettings,
    device: torch.device,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Run the predictor on every image of the loader, and compare its boxes with the true ones.

    Args:
        predict: Predictor, on `device` and in evaluation mode.
        loader: Batches whose `ImageInfo.index` points into `index`, each image at most once.
        index: True boxes.
        settings: Thresholds and other settings.
        device: Device to compute on.
        on_batch: Function called after each batch, to draw or to save.
    """
    found: dict[int, Array] = {}
    clock = StageClock.of("preprocess", "inference", "nms", "metrics", device=device)
    for step, batch in enumerate(progress(loader, description="evaluating")):
        boxes = _find_boxes(predict, batch, settings=settings, clock=clock)
        for info, own in zip(batch.infos, boxes, strict=True):
            xyxy = unletterbox(own[:, :4], scale=info.scale, padding=info.padding, original_hw=info.original_hw)
            found[info.index] = np.concatenate([xyxy, own[:, 4:]], 1)
        if on_batch is not None:
            on_batch(step, batch, boxes)
    with clock.stage("metrics"):
        return _score(found, index, settings=settings, seconds=clock.seconds)


def _find_boxes(predict: Predict, batch: Batch, *, settings: EvalSettings, clock: StageClock) -> list[Array]:
    """Return, for each image, rows (n, 6) of xyxy in pixels of the batch, score, class, on the CPU."""
    device = clock.device
    with clock.stage("preprocess"):
        batch = batch.to(device, channels_last=settings.channels_last)
        images = batch.normalised()
    with (
        clock.stage("inference"),
        torch.autocast(device.type, dtype=settings.autocast, enabled=settings.autocast is not None),
    ):
        decoded = predict(images)
    with clock.stage("nms"):
        if settings.hybrid_labels:
            decoded = _with_true_boxes(decoded, batch)
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
    return np.split(together, np.cumsum([len(own) for own in kept])[:-1])


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


def _score(
    found: dict[int, Array], index: LabelIndex, *, settings: EvalSettings, seconds: dict[str, float]
) -> Evaluation:
    """Compare the boxes found with the index; an image that the loader did not yield has none."""
    nothing = np.zeros((0, 6), np.float32)
    predictions = [found.get(i, nothing) for i in range(len(index.paths))]
    truths = true_boxes(index)
    counted = with_exact_ids(index)
    rows = np.concatenate(
        [np.zeros((0, 7))]
        + [
            detection_rows(boxes, image_id=image_id, category_ids=counted.category_ids)
            for boxes, image_id in zip(predictions, counted.image_ids, strict=True)
        ]
    )
    metrics = evaluate_coco(ground_truth_from_index(counted), rows, engine=settings.engine)
    crowds = true_boxes(index, crowds=True)
    curves = confidence_curves(predictions, truths, crowds)
    best = curves.best()
    return Evaluation(
        metrics=replace(
            metrics, precision=best.precision, recall=best.recall, f1=best.f1, confidence=best.confidence
        ),
        curves=curves,
        confusion=confusion_matrix(predictions, truths, crowds, num_classes=len(index.names)),
        rows=rows,
        sources=dict(zip(counted.image_ids, zip(index.image_ids, index.file_names, strict=True), strict=True)),
        category_ids=dict(zip(counted.category_ids, index.category_ids, strict=True)),
        seconds=seconds,
        images=len(index.paths),
        boxes=sum(len(labels) for labels in truths),
    )


@dataclass(frozen=True, kw_only=True)
class StageClock:
    """Measures the seconds of each stage; waits for the device, whose work would otherwise count in the next stage.

    Attributes:
        device: Device that computes.
        seconds: Seconds so far, by name of the stage.
    """

    device: torch.device
    seconds: dict[str, float]

    @classmethod
    def of(cls, *stages: str, device: torch.device) -> StageClock:
        """Create a clock that is zero for each of these stages."""
        return cls(device=device, seconds=dict.fromkeys(stages, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in this context to a stage."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start
