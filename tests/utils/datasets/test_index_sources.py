"""Where lists and JSON files of other tools say that images lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_factory import write_image
from PIL import Image

from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.datasets.reading.images import read_image
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


@pytest.mark.parametrize("orientation", [2, 3, 4])
@pytest.mark.parametrize("others", ["stored", "upright"])
def test_boxes_of_flipped_images_are_turned_as_those_of_the_others(
    tmp_path: Path, orientation: int, others: str
) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:20, 10:30] = 255
    for name, value in (("a.png", orientation), ("b.png", 6)):
        exif = Image.Exif()
        exif[0x0112] = value
        Image.fromarray(pixels).save(tmp_path / name, exif=exif)
    write_json(tmp_path / "val.json")
    content = json.loads((tmp_path / "val.json").read_text())
    sides = {"height": 40, "width": 60} if others == "stored" else {"height": 60, "width": 40}
    content["images"].append({"id": 8, "file_name": "b.png", **sides})
    (tmp_path / "val.json").write_text(json.dumps(content))
    index = index_of(tmp_path, "val: val.json\n")
    rows, columns = np.nonzero(read_image(tmp_path / "a.png")[..., 0])
    seen = [columns.min(), rows.min(), 20, 15] if others == "stored" else [10, 5, 20, 15]
    assert ground_truth_from_index(index)["annotations"][0]["bbox"] == pytest.approx(seen)
    assert index.summary.turned == (2 if others == "stored" else 0)


def test_boxes_that_leave_their_images_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "a.png", (40, 60))
    write_json(tmp_path / "val.json")
    content = json.loads((tmp_path / "val.json").read_text())
    content["annotations"][0]["bbox"] = [40, 20, 55, 35]  # left, top, right, bottom
    (tmp_path / "val.json").write_text(json.dumps(content))
    index_of(tmp_path, "val: val.json\n")
    assert "most boxes extend beyond their image and were clipped; are they left, top, right, bottom" in caplog.text
