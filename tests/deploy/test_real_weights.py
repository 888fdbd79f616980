"""An official checkpoint on real photographs, checked against their labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploy import Predictor, load
from utils.boxes.boxes import box_iou, ltwh_to_xyxy

NUM_IMAGES = 16
LARGE = 96.0**2


@pytest.fixture(scope="module")
def coco(shared: Path) -> dict:
    return json.loads((shared / "data" / "coco128_val" / "instances_val2017_128.json").read_text())


@pytest.fixture(scope="module")
def model(shared: Path) -> Predictor:
    return load(shared / "weights" / "yolov5n_v6_coco.pt", device="cpu")


def test_most_large_objects_are_found_where_their_labels_lie(shared: Path, coco: dict, model: Predictor) -> None:
    images = coco["images"][:NUM_IMAGES]
    names = {category["id"]: category["name"] for category in coco["categories"]}
    folder = shared / "data" / "coco128_val" / "images"
    hits = total = 0
    for image, found in zip(images, model([folder / image["file_name"] for image in images]), strict=True):
        assert found.image_hw == (image["height"], image["width"])
        for label in coco["annotations"]:
            if label["image_id"] != image["id"] or label["iscrowd"] or label["area"] < LARGE:
                continue
            same_class = found.filter(classes=[names[label["category_id"]]])
            box = ltwh_to_xyxy(np.array([label["bbox"]], dtype=np.float32))
            total += 1
            hits += bool((box_iou(box, same_class.xyxy) > 0.5).any())
    assert total >= 10
    assert hits / total > 0.6


def test_half_finds_the_same_objects(shared: Path, coco: dict, model: Predictor) -> None:
    path = shared / "data" / "coco128_val" / "images" / coco["images"][0]["file_name"]
    half = load(shared / "weights" / "yolov5n_v6_coco.pt", device="cpu", half=True)
    full_found, half_found = model(path).filter(conf=0.4), half(path)
    nearest = box_iou(full_found.xyxy, half_found.xyxy).max(1)
    assert len(full_found) > 0
    assert nearest.min() > 0.8
