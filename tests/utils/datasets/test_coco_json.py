from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.datasets.coco_json import read_coco_json
from utils.errors import DataError

CONTENT: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "a.jpg", "width": 200, "height": 100}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 9, "bbox": [20, 10, 40, 50], "iscrowd": 0},
        {"id": 2, "image_id": 5, "category_id": 4, "bbox": [0, 0, 100, 100], "iscrowd": 1},
    ],
}


def write(folder: Path, content: object) -> Path:
    path = folder / "a.json"
    path.write_text(json.dumps(content))
    return path


def test_boxes_are_normalised_and_classes_follow_the_ids(tmp_path: Path) -> None:
    coco = read_coco_json(write(tmp_path, CONTENT))
    assert (coco.category_ids, coco.names) == ((4, 9), ("cat", "dog"))
    (image,) = coco.images
    assert (image.image_id, image.file_name, image.hw, image.num_crowd) == (5, "a.jpg", (100, 200), 1)
    np.testing.assert_allclose(image.rows, [[1, 0.2, 0.35, 0.2, 0.5]])


def test_a_truncated_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(CONTENT)[:-20])
    with pytest.raises(DataError, match=r"cut.json is truncated or no JSON"):
        read_coco_json(path)
    with pytest.raises(DataError, match="does not exist"):
        read_coco_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "value", "finding"),
    [
        (("images",), None, "no list 'images'"),
        (("images", 0, "width"), 0, "0 x 100 pixels"),
        (("images", 0, "id"), "five", "id is 'five'"),
        (("annotations", 0, "image_id"), 6, "annotation 1 has the unknown image_id 6"),
        (("annotations", 1, "category_id"), 1, "annotation 2 has the unknown category_id 1"),
        (("annotations", 0, "bbox"), [1, 2, 3], "bbox [1, 2, 3]"),
        (("annotations", 0, "bbox"), [1, 2, 3, float("nan")], "four finite numbers"),
        (("annotations", 0, "bbox"), "box", "four finite numbers"),
        (("categories",), [], "no categories"),
        (("categories", 1, "id"), 9, "two categories have the same id"),
        (("categories", 0), 3, "categories[0] has no key 'id'"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_and_finding(
    tmp_path: Path, place: tuple[Any, ...], value: object, finding: str
) -> None:
    content: Any = copy.deepcopy(CONTENT)
    parent = content
    for step in place[:-1]:
        parent = parent[step]
    parent[place[-1]] = value
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_coco_json(path)
    assert finding in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_a_missing_section_or_key_is_named(tmp_path: Path, section: str) -> None:
    content = {key: value for key, value in CONTENT.items() if key != section}
    with pytest.raises(DataError, match=f"no list '{section}'"):
        read_coco_json(write(tmp_path, content))
    first = CONTENT[section][0]
    key = next(iter(first)) if section != "annotations" else "bbox"
    stripped = {**CONTENT, section: [{k: v for k, v in first.items() if k != key}]}
    with pytest.raises(DataError, match=f"no key '{key}'"):
        read_coco_json(write(tmp_path, stripped))


def test_a_list_instead_of_an_object_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a list"):
        read_coco_json(write(tmp_path, []))


def test_two_images_with_one_id_are_refused(tmp_path: Path) -> None:
    content = {**CONTENT, "images": CONTENT["images"] * 2}
    with pytest.raises(DataError, match="two images have the same id"):
        read_coco_json(write(tmp_path, content))
