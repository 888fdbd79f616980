"""The twelve COCO metrics, by faster-coco-eval or by pycocotools (same definition, same values)."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any, get_args

import numpy as np

from utils.config.choices import Engine
from utils.errors import ConfigError

logger = logging.getLogger(__name__)

Detections = Sequence[Mapping[str, Any]] | np.ndarray[Any, Any]

# Positions in COCOeval's arrays: area ranges all, small, medium, large; at most 1, 10, 100 boxes per image.
_AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}
_MAX_BOXES = {1: 0, 10: 1, 100: 2}
_IOU_50, _IOU_75 = 0, 5


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """COCO's twelve metrics, and precision and recall at the best F1.

    The twelve are in [0, 1], or NaN (COCO writes -1) if the data have no true box of that kind. `precision`,
    `recall`, `f1` are means over classes at IoU .5 and at `confidence`, where the mean F1 is highest. They are NaN if
    the data have no true box; precision and confidence are also NaN if nothing was found.

    Attributes:
        per_class: "AP" and "AP50" of each class, by class name.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    AR1: float
    AR10: float
    AR100: float
    AR_small: float
    AR_medium: float
    AR_large: float
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    confidence: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the twelve COCO metrics first, under their names."""
        return asdict(self)

    def twelve(self) -> dict[str, float]:
        """Return the twelve COCO metrics by name."""
        return {name: getattr(self, name) for name in TWELVE}


TWELVE = tuple(item.name for item in fields(Metrics))[:12]


def fitness(metrics: Metrics) -> float:
    """Return the score that decides the best epoch, v5.0's .1 AP50 + .9 AP; 0 if there are no true boxes."""
    value = 0.1 * metrics.AP50 + 0.9 * metrics.AP
    return 0.0 if math.isnan(value) else value


def number_text(value: float, form: str = ".3f") -> str:
    """Format a number for display, as a dash if it is NaN."""
    return "-" if math.isnan(value) else format(value, form)


def evaluate_coco(ground_truth: Mapping[str, Any], detections: Detections, *, engine: Engine = "faster") -> Metrics:
    """Score detections against true boxes.

    Args:
        ground_truth: COCO JSON data: "images", "annotations" (bbox ltwh in pixels, area, iscrowd), "categories".
        detections: COCO results ("image_id", "category_id", "bbox" ltwh in pixels, "score"), or the same as an
            (N, 7) array: image id, left, top, width, height, score, category id.
        engine: Package that computes the metrics.

    Raises:
        ConfigError: `engine` is unknown.
    """
    coco_class, eval_class = _engine_classes(engine)
    # Both packages write into the given dictionaries, and pycocotools prints.
    own_truth = {**ground_truth, "annotations": [dict(item) for item in ground_truth["annotations"]]}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class()
        truth.dataset = own_truth
        truth.createIndex()
        evaluation = eval_class(truth, _results(truth, detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])  # (10 IoU, 101 recalls, K, 4 areas, 3 limits)
    recall = np.asarray(evaluation.eval["recall"])  # (10 IoU, K, 4 areas, 3 limits)
    names = {item["id"]: str(item["name"]) for item in ground_truth["categories"]}
    per_class = {
        names[category]: {
            "AP": _mean(precision[:, :, column, 0, -1]),
            "AP50": _mean(precision[_IOU_50, :, column, 0, -1]),
        }
        for column, category in enumerate(evaluation.params.catIds)
    }
    return Metrics(**_twelve(precision, recall), per_class=per_class)


def _engine_classes(engine: str) -> tuple[Any, Any]:
    if engine == "faster":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, partial(COCOeval_faster, print_function=logger.debug)
    if engine == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    raise ConfigError(f"--engine {engine}: unknown; choose one of {', '.join(get_args(Engine))}")


def _results(truth: Any, detections: Detections) -> Any:
    """Return the detections as a COCO object; unlike with pycocotools' own loader, there may be none."""
    if isinstance(detections, np.ndarray) and len(detections):
        return truth.loadRes(detections)
    if len(detections):
        return truth.loadRes([dict(item) for item in detections])
    empty = type(truth)()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _twelve(precision: Any, recall: Any) -> dict[str, float]:
    numbers = {
        "AP50": _mean(precision[_IOU_50, :, :, 0, -1]),
        "AP75": _mean(precision[_IOU_75, :, :, 0, -1]),
    }
    numbers |= {f"AP{suffix}": _mean(precision[..., area, -1]) for suffix, area in _AREAS.items()}
    numbers |= {f"AR{limit}": _mean(recall[..., 0, at]) for limit, at in _MAX_BOXES.items()}
    numbers |= {f"AR{suffix}": _mean(recall[..., area, -1]) for suffix, area in _AREAS.items() if suffix}
    return numbers


def _mean(values: Any) -> float:
    """Return the mean of the defined values (COCO marks others with -1); NaN if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else math.nan
