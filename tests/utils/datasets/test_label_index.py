from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_factory import build_index, write_image, write_set
from PIL import Image

from utils.datasets.indexing import index as index_module
from utils.datasets.indexing.config import DataConfig, load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.errors import DataError

BOX = "0 0.5 0.5 0.5 0.5\n"


def write_coco(root: Path, *, extra_image: bool = False) -> DataConfig:
    """Two pictures in images/val, categories 4 and 9, one crowd."""
    write_image(root / "images" / "val" / "a.png", (50, 100))
    write_image(root / "images" / "val" / "b.png", (50, 100))
    images = [{"id": 30 + n, "file_name": f"{name}.png", "width": 100, "height": 50} for n, name in enumerate("ab")]
    if extra_image:
        images.append({"id": 99, "file_name": "gone.png", "width": 10, "height": 10})
    annotations = [
        {"id": 1, "image_id": 31, "category_id": 9, "bbox": [10, 10, 20, 30]},
        {"id": 2, "image_id": 31, "category_id": 4, "bbox": [0, 0, 100, 50], "iscrowd": 1},
    ]
    categories = [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances_val.json").write_text(json.dumps(content))
    (root / "coco.yaml").write_text("val: instances_val.json\nimage_root: images\n")
    return load_data_config(root / "coco.yaml")


def test_every_fault_is_counted_and_none_stops(tmp_path: Path) -> None:
    labels = {
        "1": BOX,
        "2": "",
        "3": "7 0.5 0.5 0.1 0.1\n0 0.9 0.5 0.4 0.1\n1 0.5 0.5 0 0.1\n" + BOX + BOX,
        "4": BOX,
    }
    config = load_data_config(write_set(tmp_path, labels))
    images = tmp_path / "images" / "train"
    write_image(images / "5.png", (20, 30))
    cut = images / "4.png"
    cut.write_bytes(cut.read_bytes()[:40])
    index = build_label_index(config, "train")
    expected = {
        "images": 4,
        "boxes": 3,
        "missing_labels": 1,
        "empty_labels": 1,
        "corrupt_images": 1,
        "out_of_range": 1,
        "outside": 1,
        "duplicate": 1,
        "zero_area": 1,
        "missing_images": 0,
    }
    assert {name: getattr(index.summary, name) for name in expected} == expected
    assert index.image_ids == (1, 2, 3, 5)
    np.testing.assert_array_equal(index.shapes_hw, [(48, 64)] * 3 + [(20, 30)])
    text = index.summary.as_text()
    assert "4 images, 3 boxes" in text
    assert "1 images corrupt or of an unreadable kind, skipped" in text
    assert "4.png (corrupt: " in text
    assert len(text.splitlines()) < 20


def test_coco_ids_sizes_and_boxes_are_taken_over(tmp_path: Path) -> None:
    config = write_coco(tmp_path, extra_image=True)
    index = build_label_index(config, "val")
    assert index.image_ids == (30, 31)
    assert index.category_ids == (4, 9)
    assert index.names == ("cat", "dog")
    assert index.file_names == ("a.png", "b.png")
    assert [truth.is_crowd.tolist() for truth in index.truth] == [[], [False, True]]
    assert index.truth[1].ltwh.tolist() == [[10, 10, 20, 30], [0, 0, 100, 50]]
    assert index.truth[1].areas.tolist() == [600, 5000]
    assert [len(labels) for labels in index.labels] == [0, 1]
    np.testing.assert_allclose(index.labels[1], [[1, 0.2, 0.5, 0.2, 0.6]])
    assert (index.summary.missing_images, index.summary.crowd) == (1, 1)


def test_a_size_that_differs_from_the_json_is_counted(tmp_path: Path) -> None:
    config = write_coco(tmp_path)
    write_image(tmp_path / "images" / "val" / "a.png", (60, 100))
    index = build_label_index(config, "val")
    assert index.summary.size_differs == 1
    assert index.shapes_hw[0].tolist() == [60, 100]


def test_class_names_must_match_the_categories(tmp_path: Path) -> None:
    config = replace(write_coco(tmp_path), names=("cat",))
    with pytest.raises(DataError, match="1 class names but .* 2 categories"):
        build_label_index(config, "val")


def test_a_single_class_has_class_zero_and_keeps_crowds(tmp_path: Path) -> None:
    index = build_label_index(write_coco(tmp_path), "val", single_cls=True)
    assert index.labels[1][:, 0].tolist() == [0]
    assert (index.names, index.category_ids) == (("item",), (0,))
    assert index.truth[1].classes.tolist() == [0, 0]
    assert index.truth[1].is_crowd.tolist() == [False, True]


def test_a_txt_list_names_its_images(tmp_path: Path) -> None:
    write_set(tmp_path, {"x": BOX, "y": BOX})
    missing = "./images/train/gone.png"
    (tmp_path / "list.txt").write_text(f"./images/train/y.png\n\n{tmp_path}/images/train/x.png\n{missing}\n")
    (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [a]\n")
    index = build_label_index(load_data_config(tmp_path / "data.yaml"), "train")
    assert [Path(path).name for path in index.paths] == ["y.png", "x.png"]
    assert index.image_ids == (0, 1)
    assert index.summary.missing_images == 1


def test_exif_rotated_pictures_have_the_size_people_see(tmp_path: Path) -> None:
    config = load_data_config(write_set(tmp_path, {"1": BOX}))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "images" / "train" / "1.png", exif=exif)
    assert build_label_index(config, "train").shapes_hw.tolist() == [[64, 48]]


def test_the_second_time_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_index(tmp_path)
    assert (tmp_path / "labels" / "train.index.cache").is_file()
    monkeypatch.setattr(index_module, "scan", None)  # reading anything would fail
    second = build_label_index(load_data_config(tmp_path / "data.yaml"), "train")
    assert second.paths == first.paths
    assert second.image_ids == first.image_ids
    assert second.summary == first.summary
    assert [truth.to_rows().tolist() for truth in second.truth] == [truth.to_rows().tolist() for truth in first.truth]
    assert (second.file_names, second.digests) == (first.file_names, first.digests)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(first.labels, second.labels, strict=True))
    np.testing.assert_array_equal(second.shapes_hw, first.shapes_hw)


def test_a_changed_label_makes_the_cache_stale(tmp_path: Path) -> None:
    build_index(tmp_path)
    label = tmp_path / "labels" / "train" / "000.txt"
    label.write_text("1 0.5 0.5 0.5 0.5\n")
    os.utime(label, ns=(1, 1))
    index = build_label_index(load_data_config(tmp_path / "data.yaml"), "train")
    assert index.labels[0][0, 0] == 1


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_damaged_cache_is_replaced(tmp_path: Path, content: bytes) -> None:
    first = build_index(tmp_path)
    cache = tmp_path / "labels" / "train.index.cache"
    cache.write_bytes(content)
    second = build_label_index(load_data_config(tmp_path / "data.yaml"), "train")
    assert second.paths == first.paths
    assert cache.stat().st_size > 100


def test_the_cache_can_be_put_elsewhere(tmp_path: Path) -> None:
    config = load_data_config(write_set(tmp_path / "set", {"1": BOX}))
    before = sorted(tmp_path.joinpath("set").rglob("*"))
    build_label_index(config, "train", cache_dir=tmp_path / "cache")
    assert sorted(tmp_path.joinpath("set").rglob("*")) == before
    assert len(list((tmp_path / "cache").glob("train-*.index.cache"))) == 1


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = load_data_config(write_set(tmp_path, {"1": BOX}))
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        index = build_label_index(config, "train", cache_dir=tmp_path / "file")
    assert len(index) == 1
    assert "not cached" in caplog.text


def test_a_malformed_label_stops_with_its_line(tmp_path: Path) -> None:
    config = load_data_config(write_set(tmp_path, {"1": BOX, "2": "0 0.5 0.5 0.1\n"}))
    with pytest.raises(DataError, match=r"2.txt, line 1: 4 columns"):
        build_label_index(config, "train")


def test_no_usable_image_is_a_data_error(tmp_path: Path) -> None:
    config = load_data_config(write_set(tmp_path, {"1": BOX}))
    (tmp_path / "images" / "train" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="no usable image among 1"):
        build_label_index(config, "train")
    (tmp_path / "images" / "train" / "1.png").unlink()
    with pytest.raises(DataError, match="lists no image"):
        build_label_index(config, "train")


def test_a_source_of_an_unknown_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("")
    (tmp_path / "d.yaml").write_text("train: train.csv\nnames: [a]\n")
    with pytest.raises(DataError, match=r"train.csv is neither a folder of images, a .txt list nor"):
        build_label_index(load_data_config(tmp_path / "d.yaml"), "train")


@pytest.mark.parametrize(("split", "images", "boxes"), [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)])
def test_the_bundled_set_is_clean_and_json_and_txt_agree(tmp_path: Path, split: str, images: int, boxes: int) -> None:
    root = Path(__file__).parents[3] / "data" / "bccd"
    txt = build_label_index(load_data_config(root / "data.yaml"), split, cache_dir=tmp_path)
    (tmp_path / "c.yaml").write_text(
        f"{split}: {root}/annotations/instances_{split}.json\nimage_root: {root}/images\n"
    )
    coco = build_label_index(load_data_config(tmp_path / "c.yaml"), split, cache_dir=tmp_path)
    assert (len(txt), txt.summary.boxes) == (len(coco), coco.summary.boxes) == (images, boxes)
    assert txt.names == coco.names == ("RBC", "WBC", "Platelets")
    by_path = dict(zip(coco.paths, coco.labels, strict=True))
    for path, labels in zip(txt.paths, txt.labels, strict=True):
        np.testing.assert_allclose(labels, by_path[path], atol=2e-6)


def test_real_coco_ids_have_gaps(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "coco128_val"
    (tmp_path / "c.yaml").write_text(f"val: {folder}/instances_val2017_128.json\nimage_root: {folder}/images\n")
    index = build_label_index(load_data_config(tmp_path / "c.yaml"), "val", cache_dir=tmp_path)
    assert (len(index), len(index.names), index.category_ids[-1]) == (128, 80, 90)
    assert index.image_ids[0] == 139
    assert index.summary.missing_images == index.summary.size_differs == 0
