import json
from types import SimpleNamespace

import numpy as np
import pytest

from utils.metrics.ground_truth import coco_results, detection_rows, ground_truth_from_index, true_boxes


def _index(coco=None):
    return SimpleNamespace(
        paths=("a/1.jpg", "a/2.jpg"),
        labels=(np.array([[1, 0.5, 0.5, 0.2, 0.4]], np.float32), np.zeros((0, 5), np.float32)),
        shapes_hw=np.array([[100, 200], [50, 50]]),
        image_ids=(11, 12),
        category_ids=(3, 7),
        names=("cat", "dog"),
        coco=coco,
    )


def test_labels_become_boxes_in_original_pixels():
    truth = ground_truth_from_index(_index())
    (item,) = truth["annotations"]
    assert item["bbox"] == pytest.approx([80, 30, 40, 40], abs=1e-4)
    assert (item["id"], item["image_id"], item["category_id"], item["iscrowd"]) == (1, 11, 7, 0)
    assert item["area"] == pytest.approx(1600, rel=1e-5)
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert truth["images"][0] == {"id": 11, "file_name": "1.jpg", "height": 100, "width": 200}


def test_json_keeps_crowds_and_areas_of_the_images_in_the_index(tmp_path):
    annotations = [
        {"id": 0, "image_id": 12, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 61.5, "iscrowd": 1},
        {"id": 1, "image_id": 99, "category_id": 3, "bbox": [0, 0, 10, 10], "area": 1, "iscrowd": 0},
        {"id": 2, "image_id": 11, "category_id": 7, "bbox": [0, 0, 10, 20]},
    ]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"annotations": annotations}))
    first, second = ground_truth_from_index(_index(coco=path))["annotations"]
    assert (first["id"], first["area"], first["iscrowd"]) == (1, 61.5, 1)
    assert (second["id"], second["area"], second["iscrowd"]) == (2, 200, 0)


def test_true_boxes_are_class_and_corners():
    boxes = true_boxes(_index())
    assert boxes[0] == pytest.approx(np.array([[1, 80, 30, 120, 70]]), abs=1e-4)
    assert boxes[1].shape == (0, 5)


def test_results_are_ltwh_rounded_with_the_category_ids_of_the_data():
    boxes = np.array([[1.00049, 2, 11.00049, 22, 0.123456, 1]])
    rows = detection_rows(boxes, image_id=11, category_ids=(3, 7))
    assert coco_results(rows) == [
        {"image_id": 11, "category_id": 7, "bbox": [1.0, 2.0, 10.0, 20.0], "score": 0.12346}
    ]
