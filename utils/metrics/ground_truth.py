"""True boxes of a label index in the forms that metrics want, and predicted boxes as COCO results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.boxes import cxcywh_to_xyxy, xyxy_to_ltwh

if TYPE_CHECKING:
    from utils.datasets.index import LabelIndex

Array = np.ndarray[Any, Any]


def ground_truth_from_index(index: LabelIndex) -> dict[str, Any]:
    """The data set as COCO JSON data, restricted to the images of the index.

    A set that came from a COCO JSON keeps its own annotations, so that crowds and areas count as COCO counts them.
    """
    if index.coco is not None:
        annotations = _annotations_of_json(index.coco, index)
    else:
        annotations = _annotations_of_labels(index)
    # COCO's matching marks "unmatched" with 0, so ids start at 1; a file's own ids may not.
    annotations = [{**item, "id": number} for number, item in enumerate(annotations, start=1)]
    images = [
        {"id": image_id, "file_name": Path(path).name, "height": int(hw[0]), "width": int(hw[1])}
        for image_id, path, hw in zip(index.image_ids, index.paths, index.shapes_hw, strict=True)
    ]
    categories = [
        {"id": category_id, "name": name} for category_id, name in zip(index.category_ids, index.names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotations_of_json(path: Path, index: LabelIndex) -> list[dict[str, Any]]:
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    known_images = set(index.image_ids)
    known_categories = set(index.category_ids)
    annotations = []
    for item in content["annotations"]:
        if item["image_id"] not in known_images or item["category_id"] not in known_categories:
            continue
        width, height = item["bbox"][2:]
        annotations.append(
            {
                "image_id": item["image_id"],
                "category_id": item["category_id"],
                "bbox": item["bbox"],
                "area": item.get("area", width * height),
                "iscrowd": int(item.get("iscrowd", 0)),
            }
        )
    return annotations


def _annotations_of_labels(index: LabelIndex) -> list[dict[str, Any]]:
    annotations = []
    for image_id, boxes in zip(index.image_ids, true_boxes(index), strict=True):
        ltwh = xyxy_to_ltwh(boxes[:, 1:])
        for class_id, box in zip(boxes[:, 0], ltwh.tolist(), strict=True):
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": index.category_ids[int(class_id)],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    return annotations


def true_boxes(index: LabelIndex) -> list[Array]:
    """One (m, 5) float64 array per image: class, xyxy in pixels of the original image."""
    boxes = []
    for labels, (height, width) in zip(index.labels, index.shapes_hw.tolist(), strict=True):
        xyxy = cxcywh_to_xyxy(labels[:, 1:5].astype(np.float64)) * np.array([width, height, width, height])
        boxes.append(np.concatenate([labels[:, :1], xyxy], 1))
    return boxes


def detection_rows(boxes: Array, *, image_id: int, category_ids: Sequence[int]) -> Array:
    """Boxes of one image as rows of COCO results.

    Args:
        boxes: (n, 6) xyxy in pixels of the original image, score, class.
        image_id: The image's id in the data set.
        category_ids: The data set's id of each class.

    Returns:
        (n, 7) float64: image id, left, top, width, height (3 decimals), score (5 decimals), category id.
    """
    rows = np.empty((len(boxes), 7))
    rows[:, 0] = image_id
    rows[:, 1:5] = xyxy_to_ltwh(boxes[:, :4].astype(np.float64)).round(3)
    rows[:, 5] = boxes[:, 4].astype(np.float64).round(5)
    rows[:, 6] = np.asarray(category_ids)[boxes[:, 5].astype(np.int64)]
    return rows


def coco_results(rows: Array) -> list[dict[str, Any]]:
    """(N, 7) rows as the list of dictionaries that a COCO results file holds."""
    return [
        {"image_id": int(row[0]), "category_id": int(row[6]), "bbox": row[1:5], "score": row[5]}
        for row in rows.tolist()
    ]
