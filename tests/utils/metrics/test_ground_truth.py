import numpy as np
import pytest
from tiny import label_index

from utils.metrics.ground_truth import coco_results, detection_rows, ground_truth_from_index, true_boxes


def _index():
    return label_index(
        (np.array([[1, 0.5, 0.5, 0.2, 0.4]]), np.zeros((0, 5))),
        crowds=(np.zeros((0, 5)), np.array([[0, 0.5, 0.5, 1, 1]])),
        paths=("a/1.jpg", "a/2.jpg"),
        shapes_hw=((100, 200), (50, 50)),
        image_ids=(11, 12),
        category_ids=(3, 7),
        names=("cat", "dog"),
    )


def test_labels_become_boxes_in_original_pixels():
    truth = ground_truth_from_index(_index())
    item, crowd = truth["annotations"]
    assert item["bbox"] == pytest.approx([80, 30, 40, 40], abs=1e-4)
    assert (item["id"], item["image_id"], item["category_id"], item["iscrowd"]) == (1, 11, 7, 0)
    assert item["area"] == pytest.approx(1600, rel=1e-5)
    assert (crowd["id"], crowd["image_id"], crowd["category_id"], crowd["iscrowd"]) == (2, 12, 3, 1)
    assert truth["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    assert truth["images"][0] == {"id": 11, "file_name": "1.jpg", "height": 100, "width": 200}


def test_true_boxes_are_class_and_corners():
    boxes = true_boxes(_index())
    assert boxes[0] == pytest.approx(np.array([[1, 80, 30, 120, 70]]), abs=1e-4)
    assert boxes[1].shape == (0, 5)
    crowds = true_boxes(_index(), crowds=True)
    assert crowds[0].shape == (0, 5)
    assert crowds[1].tolist() == [[0, 0, 0, 50, 50]]


def test_results_are_ltwh_rounded_with_the_category_ids_of_the_data():
    boxes = np.array([[1.00049, 2, 11.00049, 22, 0.123456, 1]])
    rows = detection_rows(boxes, image_id=11, category_ids=(3, 7))
    assert coco_results(rows, {11: (11, "a/1.jpg")}, {3: 3, 7: 7}) == [
        {
            "image_id": 11,
            "file_name": "a/1.jpg",
            "category_id": 7,
            "bbox": [1.0, 2.0, 10.0, 20.0],
            "score": 0.12346,
        }
    ]
