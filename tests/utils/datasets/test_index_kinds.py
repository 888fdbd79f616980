"""Data sets as people have them: what the index makes of them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_factory import write_image
from PIL import Image

from tasks.detector_data import check_trainable, warn_of_shared_images
from utils.boxes.boxes import cxcywh_to_xyxy
from utils.config.hyp import Hyp
from utils.datasets.coco_names import COCO_IDS, COCO_NAMES
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.datasets.loading.dataset import DetectionDataset
from utils.datasets.reading.images import read_image
from utils.detections.output_names import OutputNames
from utils.errors import DataError
from utils.metrics.ground_truth import ground_truth_from_index, true_boxes

BOX = "0 0.5 0.5 0.5 0.5\n"


def noise(path: Path, hw: tuple[int, int] = (40, 60), *, seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)).save(path, **options)
    return path


def coco(root: Path, name: str = "val.json", **changes: Any) -> Path:
    """A JSON of one image a.png, 60 x 40, with a dog at (10, 5, 20, 15) and a crowd of cats."""
    content: dict[str, Any] = {
        "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 15], "area": 250, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 60, 10], "area": 600, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        **changes,
    }
    path = root / name
    path.write_text(json.dumps(content))
    return path


def index_of(root: Path, text: str, *, split: str = "val", **options: Any) -> LabelIndex:
    (root / "data.yaml").write_text(text)
    return build_label_index(load_data_config(root / "data.yaml"), split, cache_dir=root / "cache", **options)


def test_truth_and_labels_are_the_same_boxes(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    coco(tmp_path)
    index = index_of(tmp_path, "val: val.json\n")
    truth = ground_truth_from_index(index)["annotations"]
    assert [(item["bbox"], item["area"], item["iscrowd"]) for item in truth] == [
        ([10, 5, 20, 15], 250, 0),
        ([0, 0, 60, 10], 600, 1),
    ]
    from_labels = cxcywh_to_xyxy(index.labels[0][:, 1:]) * np.array([60, 40, 60, 40])
    np.testing.assert_allclose(true_boxes(index)[0], [[1, *from_labels[0]]], atol=1e-5)


def test_boxes_and_areas_scale_with_an_image_of_another_size(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", (80, 30))
    coco(tmp_path)
    index = index_of(tmp_path, "val: val.json\n")
    item = ground_truth_from_index(index)["annotations"][0]
    assert item["bbox"] == pytest.approx([5, 10, 10, 30])
    assert item["area"] == pytest.approx(250)  # twice as high, half as wide
    assert index.summary.size_differs == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("stated", ["stored", "upright", "stored, twice as large"])
def test_boxes_turn_with_an_image_that_exif_turns(tmp_path: Path, orientation: int, stated: str) -> None:
    """A white rectangle on black tells where the box must lie, whichever size the JSON states."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:20, 10:30] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    upright = read_image(tmp_path / "a.png")
    rows, columns = np.nonzero(upright[..., 0])
    seen = [columns.min(), rows.min(), columns.max() + 1 - columns.min(), rows.max() + 1 - rows.min()]
    if stated == "upright":
        hw, box = upright.shape[:2], [int(value) for value in seen]
    else:
        if orientation in (2, 3, 4):
            pytest.skip("a flip does not change the size, so nothing tells which one is meant")
        scale = 2 if "twice" in stated else 1
        hw, box = (40 * scale, 60 * scale), [value * scale for value in (10, 5, 20, 15)]
    coco(
        tmp_path,
        images=[{"id": 7, "file_name": "a.png", "height": hw[0], "width": hw[1]}],
        annotations=[{"id": 1, "image_id": 7, "category_id": 2, "bbox": box}],
    )
    index = index_of(tmp_path, "val: val.json\n")
    assert ground_truth_from_index(index)["annotations"][0]["bbox"] == pytest.approx(seen)
    assert index.summary.turned == int(stated != "upright" and orientation >= 5)


@pytest.mark.parametrize("extra", [{}, {"width": -1, "height": -1}, {"width": None, "height": "tall"}])
def test_without_a_size_boxes_are_in_pixels_of_the_file(tmp_path: Path, extra: dict[str, Any]) -> None:
    noise(tmp_path / "a.png")
    coco(tmp_path, images=[{"id": 7, "file_name": "a.png", **extra}])
    index = index_of(tmp_path, "val: val.json\n")
    assert true_boxes(index)[0].tolist() == [[1, 10, 5, 30, 20]]


def test_crowds_stay_with_several_jsons_and_with_a_single_class(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    noise(tmp_path / "b.png", seed=1)
    coco(tmp_path, "one.json")
    coco(tmp_path, "two.json", images=[{"id": 7, "file_name": "b.png", "width": 60, "height": 40}])
    both = index_of(tmp_path, "val: [one.json, two.json]\n")
    assert [truth.is_crowd.tolist() for truth in both.truth] == [[False, True]] * 2
    assert both.image_ids == (0, 1)  # the files use the same id
    assert both.category_ids == (1, 2)
    one = index_of(tmp_path, "val: one.json\n", single_cls=True)
    assert [(item["category_id"], item["iscrowd"]) for item in ground_truth_from_index(one)["annotations"]] == [
        (0, 0),
        (0, 1),
    ]


def test_categories_are_matched_by_name(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    coco(tmp_path)
    index = index_of(tmp_path, "val: val.json\nnames: [dog, cat]\n")
    assert index.labels[0][:, 0].tolist() == [0]
    assert index.category_ids == (2, 1)
    with pytest.raises(DataError, match=r"only the YAML has 'cow'; only the JSON has 'cat'"):
        index_of(tmp_path, "val: val.json\nnames: [dog, cow]\n")


def test_a_root_category_is_no_class_in_any_file(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
        {"id": 2, "name": "dog", "supercategory": "pets"},
    ]
    coco(tmp_path, categories=categories)
    index = index_of(tmp_path, "val: val.json\n")
    assert (index.names, index.category_ids, index.labels[0][:, 0].tolist()) == (("cat", "dog"), (1, 2), [1])
    assert index_of(tmp_path, "val: val.json\nnames: [pets, cat, dog]\n").names == ("pets", "cat", "dog")


def test_label_ids_follow_the_yaml_whatever_order_the_classes_are_put_in(tmp_path: Path) -> None:
    noise(tmp_path / "images" / "1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.txt").write_text("0 .5 .5 .1 .1\n2 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text("val: images\nnames: [a, b, c]\n")
    config = load_data_config(tmp_path / "data.yaml").in_order_of(("c", "b", "a"), weights="net")
    index = build_label_index(config, "val", cache_dir=tmp_path)
    assert [index.names[int(class_id)] for class_id in index.labels[0][:, 0]] == ["a", "c"]
    assert index.truth[0].classes.tolist() == [2, 0]


def test_duplicates_are_dropped_everywhere(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    box = {"image_id": 7, "category_id": 2, "bbox": [10, 5, 20, 15]}
    coco(tmp_path, annotations=[{"id": 1, **box}, {"id": 2, **box}])
    index = index_of(tmp_path, "val: val.json\n")
    assert len(index.labels[0]) == len(ground_truth_from_index(index)["annotations"]) == 1
    assert index.summary.duplicate == 1


def test_boxes_outside_are_clipped_everywhere(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    boxes = ([50, 30, 30, 30], [70, 5, 10, 10], [5, 5, 0, 10])
    coco(
        tmp_path,
        annotations=[{"id": n, "image_id": 7, "category_id": 2, "bbox": box} for n, box in enumerate(boxes)],
    )
    index = index_of(tmp_path, "val: val.json\n")
    assert index.truth[0].ltwh.tolist() == [pytest.approx([50, 30, 10, 10], abs=1e-4)]
    assert len(index.labels[0]) == 1


def test_coco_names_in_txt_labels_have_the_official_ids(tmp_path: Path) -> None:
    noise(tmp_path / "images" / "000000000785.png")
    names = list(reversed(COCO_NAMES))
    index = index_of(tmp_path, f"val: images\nnames: {names}\n")
    assert index.category_ids == tuple(reversed(COCO_IDS))
    assert index.image_ids == (785,)
    others = index_of(tmp_path, "val: images\nnames: [a, b]\n")
    assert others.category_ids == (0, 1)


@pytest.mark.parametrize(
    "file_name",
    [
        "sub/b c.png",
        "sub\\b c.png",
        "sub/b%20c.png",
        "/home/me/set/sub/b c.png",
        "C:\\set\\sub\\b c.png",
        "http://x.org/sub/b%20c.png",
        "../other/sub/b c.png",
    ],
)
def test_file_names_of_other_systems_are_found(tmp_path: Path, file_name: str) -> None:
    noise(tmp_path / "images" / "sub" / "b c.png")
    coco(tmp_path, images=[{"id": 7, "file_name": file_name, "width": 60, "height": 40}])
    index = index_of(tmp_path, "val: val.json\nimage_root: images\n")
    assert Path(index.paths[0]) == tmp_path / "images" / "sub" / "b c.png"
    assert index.file_names == (file_name,)
    is_exact = file_name in ("sub\\b c.png", "sub/b%20c.png", "sub/b c.png")
    assert any("found by the end of their path" in note for note in index.summary.notes) == (not is_exact)


def test_two_names_that_would_lead_to_one_file_are_refused(tmp_path: Path) -> None:
    noise(tmp_path / "1.png")
    images = [{"id": n, "file_name": f"/data/cam{n}/1.png", "width": 60, "height": 40} for n in (7, 8)]
    coco(tmp_path, images=images)
    with pytest.raises(DataError, match=r"/data/cam7/1.png and /data/cam8/1.png do not exist, and both would be"):
        index_of(tmp_path, "val: val.json\n")


def test_a_json_without_annotations_has_no_labels(tmp_path: Path) -> None:
    noise(tmp_path / "a.png")
    content = json.loads(coco(tmp_path).read_text())
    del content["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    index = index_of(tmp_path, "val: val.json\ntrain: val.json\n")
    assert (index.is_labelled, index.num_boxes, index.summary.empty_labels) == (False, 0, 0)
    with pytest.raises(DataError, match="the JSON has no annotations"):
        check_trainable(index, where="train")


def test_hidden_files_are_passed_over_links_followed_and_loops_noticed(tmp_path: Path) -> None:
    for name in ("a/1.png", ".hidden/2.png", "a/.3.png", "__MACOSX/4.png"):
        noise(tmp_path / "images" / name)
    noise(tmp_path / "store" / "5.png", seed=5)
    (tmp_path / "images" / "link").symlink_to(tmp_path / "store")
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    index = index_of(tmp_path, "val: images\nnames: [x]\n")
    assert index.file_names == ("a/1.png", "link/5.png")
    assert any(note.startswith("1 links to a folder above them") for note in index.summary.notes)


def test_images_of_a_list_are_named_below_their_common_folder(tmp_path: Path) -> None:
    noise(tmp_path / "set" / "images" / "a.png")
    noise(tmp_path / "other" / "cam" / "a.png", seed=1)
    (tmp_path / "set" / "list.txt").write_text("images/../images/a.png\n../other/cam/a.png\n")
    index = index_of(tmp_path, "val: set/list.txt\nnames: [x]\n")
    assert index.file_names == ("set/images/a.png", "other/cam/a.png")
    assert [folder for _, folder in index.inputs] == [tmp_path, tmp_path]


def test_images_of_a_json_with_absolute_names_keep_their_subfolders_in_outputs(tmp_path: Path) -> None:
    for seed, cam in enumerate(("cam1", "cam2", "cam3")):
        noise(tmp_path / "set" / cam / "a.png", seed=seed)
    names = (f"{tmp_path}/set/cam1/a.png", "../set/cam2/a.png", "C:\\old\\set\\cam3\\a.png")
    images = [{"id": i, "file_name": name, "width": 60, "height": 40} for i, name in enumerate(names)]
    coco(tmp_path / "set", images=images, annotations=[])
    index = index_of(tmp_path, "val: set/val.json\n")
    assert [folder for _, folder in index.inputs] == [tmp_path / "set"] * 3
    outputs = OutputNames(index.inputs)
    assert [outputs.label(path) for path in index.paths] == [f"labels/cam{i}/a.txt" for i in (1, 2, 3)]


def test_pipes_and_devices_are_counted_and_links_to_nothing_are_missing(tmp_path: Path) -> None:
    images = tmp_path / "images"
    noise(images / "a.png")
    os.mkfifo(images / "pipe")
    os.mkfifo(images / "pipe.jpg")
    (images / "zero.png").symlink_to("/dev/zero")
    (images / "dead.png").symlink_to(images / "nowhere")
    (images / "self.png").symlink_to(images / "self.png")
    (images / "self").symlink_to(images / "self")
    index = index_of(tmp_path, "val: images\nnames: [x]\n")
    assert index.file_names == ("a.png",)
    assert index.summary.missing_images == 2
    assert "4 files that are not images, not read: 3 pipe, socket or device, 1 no suffix" in index.summary.notes


def test_folders_that_may_not_be_opened_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise(tmp_path / "images" / "a.png")
    noise(tmp_path / "images" / "closed" / "b.png")
    scan = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    index = index_of(tmp_path, "val: images\nnames: [x]\n")
    assert index.file_names == ("a.png",)
    assert any(note.startswith("1 folders that may not be opened, not read, e.g. ") for note in index.summary.notes)


def test_names_that_are_not_utf8_are_names(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"latin\xe9")
    noise(folder / "images" / os.fsdecode(b"caf\xe9.png"))
    (folder / "labels").mkdir()
    (folder / "labels" / os.fsdecode(b"caf\xe9.txt")).write_text(BOX)
    for _ in range(2):  # the second time from its cache
        index = index_of(folder, "val: images\nnames: [x]\n")
        assert (os.fsencode(index.file_names[0]), index.num_boxes) == (b"caf\xe9.png", 1)


def test_content_decides_and_what_is_not_read_is_counted(tmp_path: Path) -> None:
    images = tmp_path / "images"
    noise(images / "a.jpg").rename(images / "a")  # no suffix
    noise(images / "b.jpg", seed=1).rename(images / "b.picture")
    noise(images / "c.png", seed=2).rename(images / "c.jpg")
    noise(images / "d.gif", seed=3)
    noise(images / "e.jpg", seed=4).rename(images / "e.JPE")
    for name in ("x.mp4", "y.mp4", "z.pdf", "notes", "classes.txt", "Thumbs.db"):
        (images / name).write_bytes(b"nothing")
    index = index_of(tmp_path, "val: images\nnames: [x]\n")
    assert index.file_names == ("a", "b.picture", "c.jpg", "d.gif", "e.JPE")
    assert "4 files that are not images, not read: 2 .mp4, 1 .pdf, 1 no suffix" in index.summary.notes


def test_images_that_share_labels_and_labels_without_images_are_told(tmp_path: Path) -> None:
    noise(tmp_path / "images" / "a.jpg")
    noise(tmp_path / "images" / "a.png", seed=1)
    (tmp_path / "labels").mkdir()
    for name in ("a", "gone", "classes"):
        (tmp_path / "labels" / f"{name}.txt").write_text(BOX)
    notes = index_of(tmp_path, "val: images\nnames: [x]\n").summary.notes
    assert [note for note in notes if note.startswith("2 images share their label file with another")]
    assert [note for note in notes if note.startswith("1 label files without an image") and "gone.txt" in note]


def test_equal_images_are_counted_in_a_split_and_across(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "train" / "a.png")
    noise(tmp_path / "train" / "b.png", seed=1)
    shutil.copy(tmp_path / "train" / "a.png", tmp_path / "train" / "again.png")
    shutil.copy(tmp_path / "train" / "b.png", noise(tmp_path / "val" / "v.png", seed=2).with_name("w.png"))
    text = "train: train\nval: val\nnames: [x]\n"
    train, val = index_of(tmp_path, text, split="train"), index_of(tmp_path, text)
    assert (train.summary.repeated_images, val.summary.repeated_images) == (1, 0)
    warn_of_shared_images(train, val)
    assert "1 of 2 validation images are also training images" in caplog.text
    assert "w.png" in caplog.text


def test_several_folders_with_the_same_names_keep_their_images_apart(tmp_path: Path) -> None:
    for cam in ("cam1", "cam2"):
        noise(tmp_path / cam / "0001.png")
    index = index_of(tmp_path, "val: [cam1, cam2]\nnames: [x]\n")
    assert index.file_names == ("cam1/0001.png", "cam2/0001.png")
    assert index.image_ids == (0, 1)
    assert [folder for _, folder in index.inputs] == [tmp_path, tmp_path]


@pytest.mark.parametrize(
    ("line", "guess"),
    [
        ("1 .5 .5 .1 .1\n2 .5 .5 .1 .1\n", "class ids run from 1 to 2, but must start at 0"),
        ("0 .5 .5 .1 .1\n7 .2 .5 .1 .1\n9 .5 .2 .1 .1\n", "class ids run from 0 to 9 but there are 2 classes"),
        ("0 .5 .5 .1 .1\n" * 3, "most boxes occur twice"),
        ("0 .5 .5 .1 .1\n1 .5 .5 0 .1\n", "most boxes have no width or height"),
    ],
)
def test_many_dropped_boxes_are_a_warning_with_a_guess(
    tmp_path: Path, line: str, guess: str, caplog: pytest.LogCaptureFixture
) -> None:
    noise(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(line)
    with caplog.at_level(logging.WARNING):
        index_of(tmp_path, "val: images\nnames: [x, y]\n")
    assert guess in caplog.text


def test_few_dropped_boxes_are_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    lines = [f"0 .5 .5 .{n} .1\n" for n in range(1, 9)]
    (tmp_path / "labels" / "a.txt").write_text("".join([*lines, "7 .5 .5 .1 .1\n"]))
    with caplog.at_level(logging.WARNING):
        index_of(tmp_path, "val: images\nnames: [x, y]\n")
    assert not caplog.records


def test_labels_in_another_folder_are_named(tmp_path: Path) -> None:
    noise(tmp_path / "JPEGImages" / "train" / "a.png")
    label = tmp_path / "labels" / "train" / "a.txt"
    label.parent.mkdir(parents=True)
    label.write_text(BOX)
    index = index_of(tmp_path, "val: JPEGImages/train\nnames: [x]\n")
    with pytest.raises(DataError, match=f"{label.parent} contains labels with these names: move them"):
        check_trainable(index, where="train")


def test_index_and_loader_agree_on_what_is_usable(tmp_path: Path) -> None:
    images = tmp_path / "images"
    noise(images / "good.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(images / "float.tif")
    whole = noise(images / "cut.jpg", (200, 200)).read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    chunks = noise(images / "cut.png", (200, 200)).read_bytes()
    (images / "cut.png").write_bytes(chunks[:3000] + chunks[3100:])
    (images / "page.jpg").write_text("<html>")
    write_image(images / "large.png", (50, 50))
    index = index_of(tmp_path, "val: images\nnames: [x]\n")
    assert [Path(path).name for path in index.paths] == ["good.png", "large.png"]
    assert index.summary.corrupt_images == 4
    dataset = DetectionDataset(index, img_size=64, hyp=Hyp())
    assert [dataset[0, position].image.shape for position in range(2)] == [(3, 64, 64)] * 2


def test_an_image_beyond_the_limit_is_refused_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "images" / "huge.png"
    content = bytearray(noise(path, (8, 8)).read_bytes())
    content[16:24] = (20000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(content))
    noise(tmp_path / "images" / "ok.png")
    index = index_of(tmp_path, "val: images\nnames: [x]\n")
    assert len(index) == 1
    assert "20000 x 20000 pixels, more than 256 megapixels" in index.summary.examples[0]
