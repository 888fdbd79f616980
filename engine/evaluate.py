"""From a predictor and a loader to COCO numbers, curves and the confusion matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from engine.predict import Predict
from utils.batch import Batch
from utils.boxes import unletterbox
from utils.errors import ConfigError
from utils.metrics.coco import Engine, Metrics, evaluate_coco
from utils.metrics.confusion import confusion_matrix
from utils.metrics.curves import Curves, confidence_curves
from utils.metrics.ground_truth import (
    coco_results,
    detection_rows,
    ground_truth_from_index,
    true_boxes,
    with_exact_ids,
)
from utils.nms import non_max_suppression
from utils.progress import SizedIterable, progress

if TYPE_CHECKING:
    from utils.datasets.index import LabelIndex

Array = np.ndarray[Any, Any]

# Step, the batch, and per image (n, 6) xyxy in pixels of the batch, score, class.
OnBatch = Callable[[int, Batch, Sequence[Array]], None]


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """How to evaluate.

    Attributes:
        conf: Least score of a box.
        iou: NMS threshold.
        max_det: Most boxes per image.
        single_cls: Take all predictions as class 0; the index must have been built with it, too.
        engine: Which package counts the COCO numbers.
        autocast: Type for mixed precision, None for none.
        channels_last: Memory format of the images.
        hybrid_labels: Add the true boxes to the predictions with score 1 before NMS (v5.0's --save-hybrid, for
            autolabelling); the metrics then mean nothing.
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
        for name in ("conf", "iou"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ConfigError(f"{name}: got {value}, expected 0 to 1")
        if self.max_det < 1:
            raise ConfigError(f"max_det: got {self.max_det}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out.

    Attributes:
        metrics: COCO numbers, and P, R, F1 at the best confidence.
        curves: Over confidence at IoU .5.
        confusion: (K + 1, K + 1) counts, rows predicted, columns true, background last.
        rows: (N, 7) every box found, as `utils.metrics.ground_truth.detection_rows` gives them.
        sources: Id in the data set and name of each image, by its id in `rows`.
        category_ids: Id in the data set of each category, by its id in `rows`.
        seconds: Spent per stage: preprocess, inference, nms, metrics.
        images: How many were evaluated.
        boxes: How many true boxes they hold.
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
        """Every box found, as the entries of a COCO results file."""
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
    """Run every image of the loader through the predictor and score what it finds.

    Args:
        predict: Already on `device` and in eval mode.
        loader: Batches whose `ImageInfo.index` points into `index`, each image at most once.
        index: The true boxes.
        settings: See `EvalSettings`.
        device: Where to compute.
        on_batch: Called after each batch, to draw or to save.
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
    """Per image (n, 6) xyxy in pixels of the batch, score, class, on the CPU."""
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
    """Append each image's true boxes, with objectness and class probability 1, to (B, N, 5 + nc)."""
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
    """Compare what was found with the index; images the loader did not give count as without detections."""
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
    """Seconds per stage; waits for the device, whose work is otherwise booked on the next stage.

    Attributes:
        device: Where is computed.
        seconds: By name of the stage; they grow.
    """

    device: torch.device
    seconds: dict[str, float]

    @classmethod
    def of(cls, *stages: str, device: torch.device) -> StageClock:
        """At zero for each of these stages."""
        return cls(device=device, seconds=dict.fromkeys(stages, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what happens inside to a stage."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start
