"""Boxes that the detectors of a run found in the same images: intervals of mAP, and examples with differences.

Trainings write predictions.json with every box that their best network found on val; the true boxes and the images
are those of the run's data set. Where one of them does not exist, nothing is made up.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reports.reading import DENSE, FINETUNE, SPARSE, UNCUT, SlimRun, Stage
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.errors import DataError, UserError
from utils.metrics.bootstrap import Boxes, Interval, draws, interval, map_of_draws
from utils.metrics.curves import right_predictions
from utils.metrics.ground_truth import true_boxes
from utils.metrics.matching import greedy_one_to_one, overlaps

LOGGER = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

PREDICTIONS_NAME = "predictions.json"
# Least score of a box in examples, and least IoU of the same box found by two networks.
CONFIDENCE, SAME_IOU = 0.25, 0.5
# Examples of either kind, most boxes whose bootstrap takes a minute, largest difference that rounding explains.
_EXAMPLES, _MOST_BOXES, _ROUNDING = 2, 300_000, 0.002


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundBoxes:
    """The boxes that networks of a run found in the images of val.

    Attributes:
        index: Images and true boxes; the classes are in the order of the networks.
        found: Boxes of each image (n, 6), xyxy, score, class, by the stage whose network found them.
    """

    index: LabelIndex
    found: Mapping[str, list[Array]]

    @classmethod
    def read(cls, run: SlimRun) -> FoundBoxes | None:
        """Read boxes and data set; None where one of them is missing, or does not fit the other."""
        stages = [stage for stage in run.stages if (stage.path / PREDICTIONS_NAME).is_file()]
        stages = [stage for stage in stages if stage.kind in (UNCUT, DENSE, SPARSE, FINETUNE)]
        if not stages:
            return None
        try:
            index = _index_of(run, stages[0])
            return cls(index=index, found={stage.name: _by_image(stage, index) for stage in stages})
        except (UserError, OSError) as error:
            LOGGER.warning("the report has no intervals and no example images: %s", error)
            return None

    def intervals(self, scores: Mapping[str, float | None], *, reference: str) -> dict[str, dict[str, Interval]]:
        """Return intervals of mAP50-95 over images.

        Args:
            scores: mAP50-95 that a stage reported, by its name; others get no interval.
            reference: Stage with which the others are compared.

        Returns:
            By stage: "interval" of its score, and "change" of its difference from the reference on the same images.
        """
        truths, crowds = true_boxes(self.index), true_boxes(self.index, crowds=True)
        once = np.ones((1, len(self.index)), np.int64)
        drawn = draws(len(self.index))
        by_stage: dict[str, Array] = {}
        for stage, found in self.found.items():
            score, boxes = scores.get(stage), Boxes(found=found, truths=truths, crowds=crowds)
            if score is None:
                continue
            if (count := sum(map(len, found))) > _MOST_BOXES:
                LOGGER.warning("the report has no interval for %s: %d boxes, at most %d", stage, count, _MOST_BOXES)
                continue
            whole = float(map_of_draws(boxes, once)[0])
            if not abs(whole - score) <= _ROUNDING:
                LOGGER.warning(
                    "the report has no interval for %s: on the data as it is now its boxes have mAP %.4f, the stage "
                    "reported %.4f",
                    *(stage, whole, score),
                )
                continue
            by_stage[stage] = map_of_draws(boxes, drawn)
        before = by_stage.get(reference)
        return {
            stage: {
                "interval": interval(own),
                **({} if before is None or stage == reference else {"change": interval(own - before)}),
            }
            for stage, own in by_stage.items()
        }

    def examples(self, before: str, after: str) -> dict[str, Any] | None:
        """Compare the boxes of two stages, and describe a few: those that differ most, then those of the median.

        Returns:
            Plain data for report.json; None where one of the two has no boxes.
        """
        if before not in self.found or after not in self.found:
            return None
        truths = true_boxes(self.index)
        certain = {name: [own[own[:, 4] >= CONFIDENCE] for own in self.found[name]] for name in (before, after)}
        compared = [_compared(*own) for own in zip(certain[before], certain[after], truths, strict=True)]
        different = [sum(box["before"] is None or box["after"] is None for box in boxes) for boxes in compared]
        order = sorted((i for i, boxes in enumerate(compared) if boxes), key=lambda i: -different[i])
        middle = len(order) // 2
        shown = dict.fromkeys(order[:_EXAMPLES] + order[middle : middle + _EXAMPLES])
        every = [box for boxes in compared for box in boxes]
        return {
            "before": before,
            "after": after,
            "confidence": CONFIDENCE,
            "images": len(compared),
            "images_alike": different.count(0),
            "boxes_of_both": sum(box["before"] is not None and box["after"] is not None for box in every),
            "boxes_lost": sum(box["after"] is None for box in every),
            "lost_objects": sum(box["after"] is None and box["is_true"] for box in every),
            "boxes_new": sum(box["before"] is None for box in every),
            "new_objects": sum(box["before"] is None and box["is_true"] for box in every),
            "shown": [self._shown(i, compared[i]) for i in shown],
        }

    def _shown(self, position: int, boxes: list[dict[str, Any]]) -> dict[str, Any]:
        height, width = self.index.shapes_hw[position].tolist()
        # Small boxes last, so that they lie on top and a pointer reaches them.
        ordered = sorted(boxes, key=lambda box: -_area(box["xyxy"]))
        named = [{**box, "class": self.index.names[box["class"]]} for box in ordered]
        file = {"file": self.index.file_names[position], "path": self.index.paths[position]}
        return {**file, "width": width, "height": height, "boxes": named}


def _index_of(run: SlimRun, stage: Stage) -> LabelIndex:
    """Index the images of val; classes in the order of the network, which that of its results is.

    Raises:
        UserError: The data set cannot be read, or has other classes.
    """
    settings = {**run.settings, **stage.settings}
    config = load_data_config(str(settings.get("data", "")))
    names = tuple(stage.value("metrics").get("per_class") or ())
    return build_label_index(
        config.in_order_of(names, weights=str(stage.path)),
        "val",
        cache_dir=settings.get("cache_dir") or None,
        workers=int(settings.get("workers") or 0),
    )


def _by_image(stage: Stage, index: LabelIndex) -> list[Array]:
    """Return the boxes of a stage for each image of the index.

    Raises:
        DataError: The boxes are of other images or classes, or are none.
    """
    images = {image_id: position for position, image_id in enumerate(index.image_ids)}
    classes = {category_id: position for position, category_id in enumerate(index.category_ids)}
    found: list[list[list[float]]] = [[] for _ in images]
    try:
        for box in stage.read(PREDICTIONS_NAME):
            left, top, width, height = box["bbox"]
            row = [left, top, left + width, top + height, box["score"], classes[box["category_id"]]]
            found[images[box["image_id"]]].append(row)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{stage.path / PREDICTIONS_NAME} does not fit the data as it is now ({error}); measure the network again"
        ) from error
    return [np.array(rows, np.float64).reshape(-1, 6) for rows in found]


def _compared(before: Array, after: Array, truth: Array) -> list[dict[str, Any]]:
    """Pair the boxes of two networks in one image; each box says which network found it, and whether it is true.

    Args:
        before, after: Boxes (n, 6) and (m, 6): xyxy, score, class.
        truth: True boxes (t, 5): class, xyxy.
    """
    is_true = [right_predictions([own], [truth], min_iou=SAME_IOU) for own in (before, after)]
    pairs = overlaps([before], [np.column_stack([after[:, 5], after[:, :4]])], min_iou=SAME_IOU, same_class=True)
    order = np.argsort(-pairs.iou, kind="stable")
    chosen = order[greedy_one_to_one(pairs.predicted[order], pairs.true[order])]
    partner = dict(zip(pairs.predicted[chosen].tolist(), pairs.true[chosen].tolist(), strict=True))
    boxes = [
        _box(after[partner[i]] if i in partner else row, was=row, now=after[partner[i]] if i in partner else None)
        | {"is_true": bool(is_true[1][partner[i]] if i in partner else is_true[0][i])}
        for i, row in enumerate(before)
    ]
    lone = sorted(set(range(len(after))) - set(partner.values()))
    return boxes + [_box(after[j], was=None, now=after[j]) | {"is_true": bool(is_true[1][j])} for j in lone]


def _box(row: Array, *, was: Array | None, now: Array | None) -> dict[str, Any]:
    scores: Sequence[float | None] = [None if own is None else float(own[4]) for own in (was, now)]
    return {
        "class": int(row[5]),
        "xyxy": [round(float(value), 1) for value in row[:4]],
        "before": scores[0],
        "after": scores[1],
    }


def _area(xyxy: Sequence[float]) -> float:
    return (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1])
