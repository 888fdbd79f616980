"""Where lists and JSON files of other tools say that images lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dataset_factory import write_image

from utils.datasets.config import load_data_config
from utils.datasets.index import LabelIndex, build_label_index
from utils.metrics.ground_truth import ground_truth_from_index, with_exact_ids


def index_of(root: Path, text: str) -> LabelIndex:
    (root / "data.yaml").write_text(text)
    return build_label_index(load_data_config(root / "data.yaml"), "val", cache_dir=root / "cache")


def write_json(path: Path, *, hw: tuple[int, int] = (40, 60), image_id: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "images": [{"id": image_id, "file_name": "a.png", "height": hw[0], "width": hw[1]}],
        "annotations": [{"id": 1, "image_id": image_id, "category_id": 2, "bbox": [10, 5, 20, 15]}],
        "categories": [{"id": 2, "name": "dog"}],
    }
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_val2017.json", "val2017"),  # COCO
        ("annotations/instances_default.json", "images"),  # CVAT
        ("annotations/instances_val.json", "images/val"),  # Datumaro
        ("labels.json", "data"),  # FiftyOne
        ("annotations/image_info_test2017.json", "images/test2017"),
        ("valid/_annotations.coco.json", "valid"),  # Roboflow
    ],
)
def test_images_are_found_where_tools_put_them(tmp_path: Path, file: str, folder: str) -> None:
    write_image(tmp_path / folder / "a.png", (40, 60))
    write_json(tmp_path / file)
    assert index_of(tmp_path, f"val: {file}\n").paths == (str(tmp_path / folder / "a.png"),)


@pytest.mark.parametrize("line", ['"images/a.png"', "'images/a.png'", "# a list\n./images/a.png  ", "images\\a.png"])
@pytest.mark.parametrize("place", ["l.txt", "lists/l.txt"])
def test_lists_of_other_tools_are_read(tmp_path: Path, line: str, place: str) -> None:
    write_image(tmp_path / "images" / "a.png", (40, 60))
    (tmp_path / "lists").mkdir()
    (tmp_path / place).write_text(f"{line}\r\n\r\n")
    index = index_of(tmp_path, f"val: {place}\nnames: [x]\n")
    assert (len(index), index.summary.missing_images) == (1, 0)


@pytest.mark.parametrize("scale", [1, 2])
def test_height_and_width_in_each_others_place_are_put_right(tmp_path: Path, scale: int) -> None:
    write_image(tmp_path / "a.png", (40 * scale, 60 * scale))
    write_json(tmp_path / "val.json", hw=(60, 40))
    index = index_of(tmp_path, "val: val.json\n")
    box = ground_truth_from_index(index)["annotations"][0]["bbox"]
    assert box == pytest.approx([scale * value for value in (10, 5, 20, 15)])
    assert index.summary.exchanged == 1
    assert "1 images with height and width exchanged in the JSON" in index.summary.as_text()


def test_ids_beyond_float64_are_counted_by_rank(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", (40, 60))
    write_json(tmp_path / "val.json", image_id=2**53 + 1)
    index = index_of(tmp_path, "val: val.json\n")
    assert index.image_ids == (2**53 + 1,)
    assert (with_exact_ids(index).image_ids, with_exact_ids(index).category_ids) == ((0,), (2,))


def test_the_same_images_listed_from_another_folder_are_no_stale_cache(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "images" / "a.png", (40, 60))
    first = index_of(tmp_path, "val: set/images\nnames: [x]\n")
    second = index_of(tmp_path, "val: set\nnames: [x]\n")
    assert (first.file_names, second.file_names) == (("a.png",), ("images/a.png",))
