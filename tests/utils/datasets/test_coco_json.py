from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.datasets.reading.coco_json import read_coco_json
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


def test_boxes_are_in_pixels_and_classes_follow_the_ids(tmp_path: Path) -> None:
    coco = read_coco_json(write(tmp_path, CONTENT))
    assert (coco.category_ids, coco.names) == ((4, 9), ("cat", "dog"))
    (image,) = coco.images
    assert (image.image_id, image.file_name, image.hw) == (5, "a.jpg", (100, 200))
    boxes = image.annotations
    assert (boxes.classes.tolist(), boxes.is_crowd.tolist()) == ([1, 0], [False, True])
    assert boxes.ltwh.tolist() == [[20, 10, 40, 50], [0, 0, 100, 100]]
    assert np.isnan(boxes.areas).all()
    assert boxes.with_areas().areas.tolist() == [2000, 10000]


def test_a_truncated_file_is_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(CONTENT)[:-20])
    with pytest.raises(DataError, match=r"cut.json is truncated or not JSON"):
        read_coco_json(path)
    with pytest.raises(DataError, match="does not exist"):
        read_coco_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "value", "finding"),
    [
        (("images",), None, "no list 'images'"),
        (("images", 0, "file_name"), None, "file_name is None"),
        (("annotations", 0, "iscrowd"), "perhaps", "annotation 1 has iscrowd 'perhaps'"),
        (("annotations",), {}, "no list 'annotations'"),
        (("images", 0, "id"), None, "id is None"),
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
    if section != "annotations":
        content = {key: value for key, value in CONTENT.items() if key != section}
        with pytest.raises(DataError, match=f"no list '{section}'"):
            read_coco_json(write(tmp_path, content))
    first = CONTENT[section][0]
    key = next(iter(first)) if section != "annotations" else "bbox"
    stripped = {**CONTENT, section: [{k: v for k, v in first.items() if k != key}]}
    with pytest.raises(DataError, match=f"no key '{key}'"):
        read_coco_json(write(tmp_path, stripped))


def test_a_list_instead_of_an_object_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="contains a list"):
        read_coco_json(write(tmp_path, []))


def test_two_images_with_one_id_are_refused(tmp_path: Path) -> None:
    other = {**CONTENT["images"][0], "file_name": "b.jpg"}
    content = {**CONTENT, "images": [*CONTENT["images"], other]}
    with pytest.raises(DataError, match="two images have the same id"):
        read_coco_json(write(tmp_path, content))


def test_an_image_listed_twice_is_one(tmp_path: Path) -> None:
    coco = read_coco_json(write(tmp_path, {**CONTENT, "images": CONTENT["images"] * 2}))
    assert len(coco.images) == 1
    assert "images are listed twice" in coco.notes[0]


def changed(section: str, **values: object) -> dict[str, Any]:
    content = copy.deepcopy(CONTENT)
    for item in content[section]:
        item.update(values)
    return content


@pytest.mark.parametrize(
    ("written", "is_crowd"),
    [
        *(
            ("0", False),
            (0, False),
            (None, False),
            (False, False),
            ("false", False),
            (0.0, False),
            (float("nan"), False),
        ),
        *(("1", True), (1, True), (True, True), ("true", True)),
    ],
)
def test_crowds_are_known_however_they_are_written(tmp_path: Path, written: object, is_crowd: bool) -> None:
    (image,) = read_coco_json(write(tmp_path, changed("annotations", iscrowd=written))).images
    assert image.annotations.is_crowd.tolist() == [is_crowd] * 2


@pytest.mark.parametrize("area", [None, "12", 0, -3, float("nan"), [], True])
def test_an_area_that_is_none_is_that_of_the_box_and_told_once(tmp_path: Path, area: object) -> None:
    coco = read_coco_json(write(tmp_path, changed("annotations", area=area)))
    assert coco.images[0].annotations.with_areas().areas.tolist() == [2000, 10000]
    assert [note for note in coco.notes if "area" in note] == [
        "2 annotations have no area above 0; the areas of their boxes are used"
    ]


@pytest.mark.parametrize("written", ["5", 5.0, " 5 ", "5.0"])
def test_ids_that_are_numbers_as_text_are_matched(tmp_path: Path, written: object) -> None:
    coco = read_coco_json(write(tmp_path, changed("annotations", image_id=written)))
    assert len(coco.images[0].annotations) == 2
    assert coco.notes[0].startswith("2 ids are written as text")


@pytest.mark.parametrize(
    ("size", "hw"),
    [
        ((200.0, 100.0), (100, 200)),
        (("200", "100"), (100, 200)),
        ((-1, -1), None),
        ((None, 9), None),
        ((0, 9), None),
    ],
)
def test_a_size_may_be_missing(tmp_path: Path, size: tuple[object, object], hw: tuple[int, int] | None) -> None:
    coco = read_coco_json(write(tmp_path, changed("images", width=size[0], height=size[1])))
    assert coco.images[0].hw == hw
    assert any("no size" in note for note in coco.notes) == (hw is None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_every_unicode_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, ensure_ascii=False).replace("dog", "собака"), encoding=encoding)
    assert read_coco_json(path).names == ("cat", "собака")


@pytest.mark.parametrize(
    "segmentation",
    [
        [[20, 10, 60, 10, 60, 60, 20, 60]],
        [[20, 10, 30, 10, 30, 30], [50, 40, 60, 60, 40, 60]],
        {"size": [100, 200], "counts": [20 * 100 + 10, *[50, 50] * 39, 50, 20000 - 20 * 100 - 10 - 39 * 100 - 50]},
    ],
    ids=["polygon", "two polygons", "RLE"],
)
def test_an_outline_without_a_bbox_gets_one(tmp_path: Path, segmentation: object) -> None:
    content = changed("annotations", segmentation=segmentation)
    for item in content["annotations"]:
        item["bbox"] = []
    coco = read_coco_json(write(tmp_path, content))
    np.testing.assert_allclose(coco.images[0].annotations.ltwh, [[20, 10, 40, 50]] * 2)
    assert "2 annotations have no bbox; their boxes were computed from the segmentation" in coco.notes


@pytest.mark.parametrize(
    "segmentation",
    [[], [["a"]], {"size": [1]}, {"size": [2, 2], "counts": [99]}, {"size": [-1, 5], "counts": "1"}, "x"],
)
def test_an_outline_that_is_none_is_refused(tmp_path: Path, segmentation: object) -> None:
    content = changed("annotations", segmentation=segmentation, bbox=None)
    with pytest.raises(DataError, match="annotation 1 has no"):
        read_coco_json(write(tmp_path, content))


def test_normalised_boxes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no bbox is larger than 0.5 pixels; they look normalised"):
        read_coco_json(write(tmp_path, changed("annotations", bbox=[0.1, 0.2, 0.5, 0.4])))


def test_a_root_category_is_one_that_others_name_and_no_box_has(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 4, "name": "cat", "supercategory": "pets"},
        {"id": 9, "name": "dog", "supercategory": "pets"},
        {"id": 10, "name": "person", "supercategory": "person"},
    ]
    assert read_coco_json(write(tmp_path, content)).class_names() == ("cat", "dog", "person")
    content["annotations"][0]["category_id"] = 0
    assert read_coco_json(write(tmp_path, content)).class_names() == ("pets", "cat", "dog", "person")


def test_a_file_without_annotations_lists_images_to_predict_on(tmp_path: Path) -> None:
    content = {key: value for key, value in CONTENT.items() if key != "annotations"}
    coco = read_coco_json(write(tmp_path, content))
    assert not coco.is_labelled
    assert len(coco.images[0].annotations) == 0


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    first = read_coco_json(write(tmp_path, CONTENT))
    assert read_coco_json(tmp_path / "a.json") is first
    second = read_coco_json(write(tmp_path, changed("categories", name="same ")))
    assert second.names == ("same", "same")


def test_a_class_named_like_its_root_is_kept(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"] = [
        {"id": 0, "name": "cat", "supercategory": "none"},
        {"id": 4, "name": "cat", "supercategory": "cat"},
        {"id": 9, "name": "dog", "supercategory": "cat"},
        {"id": 10, "name": "none", "supercategory": "cat"},
    ]
    coco = read_coco_json(write(tmp_path, content))
    assert coco.class_names() == ("cat", "dog", "none")
    assert coco.is_class(["cat", "cat", "dog", "none"]) == (True,) * 4


def test_categories_without_a_supercategory_are_no_roots(tmp_path: Path) -> None:
    content = copy.deepcopy(CONTENT)
    content["categories"] += [{"id": 10, "name": "None"}, {"id": 11, "name": "cow", "supercategory": None}]
    assert read_coco_json(write(tmp_path, content)).class_names() == ("cat", "dog", "None", "cow")


def test_image_ids_that_are_names_are_matched_as_text(tmp_path: Path) -> None:
    content = changed("images", id="12e3")  # hexadecimal, not 12000
    for item in content["annotations"]:
        item["image_id"] = "12e3 "
    (image,) = (coco := read_coco_json(write(tmp_path, content))).images
    assert (image.image_id, len(image.annotations)) == (None, 2)
    assert "1 image ids are names; predictions use image positions instead" in coco.notes


@pytest.mark.parametrize("iscrowd", [-1, 2, "perhaps"])
def test_an_unknown_mark_of_crowds_is_refused(tmp_path: Path, iscrowd: object) -> None:
    with pytest.raises(DataError, match="expected 0 or 1"):
        read_coco_json(write(tmp_path, changed("annotations", iscrowd=iscrowd)))


def test_the_address_of_lvis_stands_for_a_name(tmp_path: Path) -> None:
    content = changed("images", coco_url="http://images.cocodataset.org/val2017/1.jpg")
    del content["images"][0]["file_name"]
    assert read_coco_json(write(tmp_path, content)).images[0].file_name.endswith("val2017/1.jpg")


@pytest.mark.parametrize("name", ["\ud800.jpg", "", None, 5])
def test_a_file_name_that_no_file_has_is_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(DataError, match="expected the name of a file"):
        read_coco_json(write(tmp_path, changed("images", file_name=name)))


def test_a_box_of_zeros_is_taken_from_the_outline(tmp_path: Path) -> None:
    outline = [[20, 10, 60, 10, 60, 60]]
    coco = read_coco_json(write(tmp_path, changed("annotations", bbox=[0, 0, 0, 0.0], segmentation=outline)))
    assert coco.images[0].annotations.ltwh.tolist() == [[20, 10, 40, 50]] * 2


def test_equal_looks_are_equal_names(tmp_path: Path) -> None:
    assert (
        read_coco_json(write(tmp_path, changed("categories", name=" caf\u0065\u0301  noir"))).names[0]
        == "caf\xe9 noir"
    )
