"""Conversion of true boxes of a label index for the metrics, and of predicted boxes to COCO results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.boxes.boxes import ltwh_to_xyxy, xyxy_to_ltwh

if TYPE_CHECKING:
    from utils.datasets.indexing.index import LabelIndex

Array = np.ndarray[Any, Any]

# Both engines convert ids to float64, which cannot distinguish larger integers from their neighbours.
_LARGEST_EXACT = 2**53


def with_exact_ids(index: LabelIndex) -> LabelIndex:
    """Return the index with ranks in place of ids that are too large for float64."""
    return replace(index, image_ids=_exact(index.image_ids), category_ids=_exact(index.category_ids))


def _exact(ids: tuple[int, ...]) -> tuple[int, ...]:
    if all(abs(number) <= _LARGEST_EXACT for number in ids):
        return ids
    rank = {number: position for position, number in enumerate(sorted(set(ids)))}
    return tuple(rank[number] for number in ids)


def ground_truth_from_index(index: LabelIndex) -> dict[str, Any]:
    """Return the boxes of the index as COCO JSON data, crowds and areas included."""
    annotations: list[dict[str, Any]] = []
    for image_id, truth in zip(index.image_ids, index.truth, strict=True):
        columns = (truth.classes.tolist(), truth.ltwh.tolist(), truth.areas.tolist(), truth.is_crowd.tolist())
        for class_id, box, area, is_crowd in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # COCO's matching marks "unmatched" with 0
                    "image_id": image_id,
                    "category_id": index.category_ids[class_id],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
            )
    images = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, name, (height, width) in zip(
            index.image_ids, index.file_names, index.shapes_hw.tolist(), strict=True
        )
    ]
    categories = [
        {"id": category_id, "name": name} for category_id, name in zip(index.category_ids, index.names, strict=True)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}


def true_boxes(index: LabelIndex, *, crowds: bool = False) -> list[Array]:
    """Return the objects, or the crowds, of each image as (m, 5) float64 class, xyxy in original pixels."""
    boxes = []
    for truth in index.truth:
        chosen = truth[truth.is_crowd == crowds]
        boxes.append(np.column_stack([chosen.classes, ltwh_to_xyxy(chosen.ltwh)]).astype(np.float64))
    return boxes


def detection_rows(boxes: Array, *, image_id: int, category_ids: Sequence[int]) -> Array:
    """Return the boxes of one image as rows of COCO results.

    Args:
        boxes: Boxes (n, 6) xyxy in pixels of the original image, score, class.
        image_id: Id of the image in the data set.
        category_ids: Id of each class in the data set.

    Returns:
        Rows (n, 7) float64: image id, left, top, width, height (3 decimals), score (5 decimals), category id.
    """
    rows = np.empty((len(boxes), 7))
    rows[:, 0] = image_id
    rows[:, 1:5] = xyxy_to_ltwh(boxes[:, :4].astype(np.float64)).round(3)
    rows[:, 5] = boxes[:, 4].astype(np.float64).round(5)
    rows[:, 6] = np.asarray(category_ids)[boxes[:, 5].astype(np.int64)]
    return rows


def coco_results(
    rows: Array, images: Mapping[int, tuple[int, str]], category_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """Convert rows (N, 7) to the list of dictionaries of a COCO results file.

    Args:
        rows: Rows from `detection_rows`.
        images: Id in the data set and name of each image, by its id in `rows`; the name traces a box to its image.
        category_ids: Id in the data set of each category, by its id in `rows`.
    """
    return [
        {
            "image_id": images[int(row[0])][0],
            "file_name": images[int(row[0])][1],
            "category_id": category_ids[int(row[6])],
            "bbox": row[1:5],
            "score": row[5],
        }
        for row in rows.tolist()
    ]
