"""Data sets that are wrong, through the real scripts: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from refusal import Place, make_place, refusal, run, write_odd_pictures
from tiny import ROOT

from utils.storage.checkpoint import load_checkpoint

Breaks = Callable[[Path], Any]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path)


def writes(name: str, text: str) -> Breaks:
    """Replaces a file."""
    return lambda root: (root / name).write_text(text)


def edits(name: str, change: Callable[[dict[str, Any]], object]) -> Breaks:
    """Changes a JSON."""

    def edit(root: Path) -> None:
        content = json.loads((root / name).read_text())
        change(content)
        (root / name).write_text(json.dumps(content))

    return edit


def cut(name: str) -> Breaks:
    """Leaves the first half of a file."""
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[: (root / name).stat().st_size // 2])


LABEL = "labels/train/a.txt"
BROKEN_SETS: dict[str, tuple[Breaks, list[str]]] = {
    "missing YAML": (lambda root: (root / "data.yaml").unlink(), ["data.yaml", "does not exist", "check"]),
    "YAML is a folder": (
        lambda root: ((root / "data.yaml").unlink(), (root / "data.yaml").mkdir()),
        ["data.yaml is a folder", "expected a YAML that names it"],
    ),
    "YAML is no YAML": (writes("data.yaml", "train: [a\nnc: }"), ["data.yaml", "cannot be read as YAML"]),
    "YAML is binary": (lambda root: (root / "data.yaml").write_bytes(b"\xff\xd8\xff\xe0"), ["data.yaml", "cannot"]),
    "unknown key": (writes("data.yaml", "trian: x\nnames: [a]\n"), ["data.yaml", "names no split", "and not trian"]),
    "no split": (writes("data.yaml", "names: [a]\n"), ["data.yaml", "names no split", "give train"]),
    "nc and names": (
        writes("data.yaml", "train: images/train\nval: images/val\nnc: 2\nnames: [a, b, c]\n"),
        ["data.yaml", "nc is 2", "3 names", "make them agree"],
    ),
    "no val": (writes("data.yaml", "train: images/train\nnames: [a]\n"), ["data.yaml", "no 'val:' line", "add one"]),
    "missing folder": (
        writes("data.yaml", "train: images/none\nval: images/val\nnames: [a]\n"),
        ["data.yaml", "images/none does not exist", "correct it"],
    ),
    "label with text": (writes(LABEL, "cat 0.5 0.5 0.5 0.5"), ["a.txt, line 1", "not all numbers", "correct"]),
    "label with NaN": (writes(LABEL, "0 0.5 nan 0.5 0.5"), ["a.txt, line 1", "not finite", "correct"]),
    "label with 4 columns": (writes(LABEL, "\n0 0.5 0.5 0.5"), ["a.txt, line 2", "4 columns, expected 5", "correct"]),
    "label with 6 columns": (
        writes(LABEL, "0 .5 .5 .5 .5 7"),
        ["a.txt, line 1", "6 columns", "confidence"],
    ),
    "label in pixels": (
        writes(LABEL, "0 320 240 50 60"),
        ["a.txt, line 1", "320 is not a fraction", "divide those"],
    ),
    "no label at all": (
        lambda root: [path.unlink() for path in (root / "labels/train").iterdir()],
        ["data.yaml: train", "no usable box to learn from in 2 images", "no image has a label file"],
    ),
    "empty labels": (
        lambda root: [path.write_text("") for path in (root / "labels/train").iterdir()],
        ["data.yaml: train", "no usable box to learn from in 2 images", "all labels are empty"],
    ),
    "ids from one": (
        lambda root: [path.write_text("3 0.5 0.5 0.2 0.2") for path in (root / "labels/train").iterdir()],
        ["data.yaml: train", "2 dropped", "class ids run from 3 to 3 but there are 3 classes"],
    ),
    "binary label": (lambda root: (root / LABEL).write_bytes(b"\x80\x81"), ["a.txt", "cannot be read as text"]),
    "list with null characters": (
        lambda root: (
            writes("data.yaml", "train: l.txt\nval: l.txt\nnames: [a]\n")(root),
            writes("l.txt", "a\0")(root),
        ),
        ["l.txt contains null characters", "save it as UTF-8 text"],
    ),
    "name too long": (
        lambda root: writes("data.yaml", f"train: {'x' * 5000}\nval: images/val\nnames: [a]\n")(root),
        ["xxx: File name too long", "check the path"],
    ),
    "no picture at all": (
        lambda root: [path.unlink() for path in (root / "images/train").iterdir()],
        ["data.yaml", "train lists no image", "check the paths"],
    ),
    "no usable picture": (
        lambda root: [path.write_text("<html>") for path in (root / "images/train").iterdir()],
        ["data.yaml", "train has no usable image among 2", "check"],
    ),
}

BROKEN_JSON: dict[str, tuple[Breaks, list[str]]] = {
    "truncated": (cut("train.json"), ["train.json", "truncated or not JSON", "download it again"]),
    "nested too deeply": (writes("train.json", "[" * 100_000), ["train.json", "truncated or not JSON"]),
    "a list": (writes("train.json", "[]"), ["train.json", "contains a list", "expected an object"]),
    "no annotations": (
        edits("train.json", lambda content: content.pop("annotations")),
        ["coco.yaml: train", "the JSON has no annotations", "give labelled data"],
    ),
    "image without a name": (
        edits("train.json", lambda content: content["images"][1].pop("file_name")),
        ["train.json", "images[1] has no key 'file_name'", "add it"],
    ),
    "all crowds": (
        edits("train.json", lambda content: [item.update(iscrowd=1) for item in content["annotations"]]),
        ["coco.yaml: train", "no usable box", "iscrowd is 1 for most objects"],
    ),
    "unknown category": (
        edits("train.json", lambda content: content["annotations"][0].update(category_id=9)),
        ["train.json", "annotation 0", "unknown category_id 9", "remove it or add the category"],
    ),
    "unknown image": (
        edits("train.json", lambda content: content["annotations"][0].update(image_id=77)),
        ["train.json", "unknown image_id 77", "remove it or add the image"],
    ),
    "box with NaN": (
        edits("train.json", lambda content: content["annotations"][0].update(bbox=[1, 2, float("nan"), 4])),
        ["train.json", "bbox", "expected four finite numbers"],
    ),
    "endless numbers": (
        edits("train.json", lambda content: content["annotations"][0].update(bbox=[10**310, 2, 3, 4])),
        ["train.json", "expected four finite numbers"],
    ),
    "endless id": (
        edits("train.json", lambda content: content["images"][0].update(id=10**30)),
        ["train.json", "expected an integer of at most 63 bits"],
    ),
    "other categories": (
        writes("coco.yaml", "train: train.json\nval: val.json\nimage_root: images\nnames: [a]\n"),
        ["coco.yaml", "1 class names", "3 categories", "make them agree"],
    ),
    "missing JSON": (
        lambda root: (root / "train.json").unlink(),
        ["coco.yaml", "train.json does not exist", "correct it or fetch"],
    ),
}


def check_refusal(line: str, parts: list[str]) -> None:
    assert [part for part in parts if part not in line] == []
    assert len(line) < 500


@pytest.mark.parametrize("case", BROKEN_SETS)
def test_broken_set_is_refused_and_nothing_is_written(
    place: Place, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, parts = BROKEN_SETS[case]
    break_it(place.root)
    before = place.snapshot()
    check_refusal(refusal("train", place.arguments("train"), capsys), parts)
    assert place.snapshot() == before
    assert not place.project.exists()


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_broken_coco_json_is_refused_and_nothing_is_written(
    place: Place, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, parts = BROKEN_JSON[case]
    break_it(place.root)
    before = place.snapshot()
    check_refusal(refusal("train", place.arguments("train", place.coco_data), capsys), parts)
    assert place.snapshot() == before


def test_val_refuses_a_broken_set_in_the_same_words(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    writes("labels/val/c.txt", "0 0.5 0.5")(place.root)
    check_refusal(refusal("val", place.arguments("val"), capsys), ["c.txt, line 1", "3 columns", "correct"])
    assert not place.project.exists()


def test_mistake_leaves_an_existing_run_folder_as_it_was(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Even when --exist-ok allows to write into it."""
    run("train", place.arguments("train"))
    writes(LABEL, "cat")(place.root)
    before = place.snapshot()
    refusal("train", [*place.arguments("train"), "--exist-ok", "--seed", "5"], capsys)
    assert place.snapshot() == before


def test_truncated_jpeg_is_skipped_and_counted(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    cut("images/train/a.jpg")(place.root)
    with caplog.at_level("INFO"):
        run("train", place.arguments("train"))
        run("detect", place.arguments("detect"))
    assert "train: 1 images, 1 boxes\n  1 images corrupt or of an unreadable kind, skipped" in caplog.text
    assert "a.jpg (corrupt: part of it is missing" in caplog.text
    assert "images: 1 (1 files skipped)" in caplog.text
    result = json.loads((place.project / "exp2/result.json").read_text())
    assert (result["images"], result["skipped"]) == (1, 1)


def test_byte_order_marks_of_windows_editors_do_no_harm(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    mark = "\ufeff"
    writes(LABEL, f"{mark}0 0.5 0.5 0.5 0.5\n")(place.root)
    writes("train.txt", f"{mark}images/train/a.jpg\n")(place.root)
    writes("data.yaml", f"{mark}train: train.txt\nval: images/val\nnc: 3\nnames: [a, b, c]\n")(place.root)
    with caplog.at_level("INFO"):
        run("train", place.arguments("train"))
        run("detect", [*place.arguments("detect"), "--source", str(place.root / "train.txt")])
    assert "train: 1 images, 1 boxes" in caplog.text
    assert "images: 1, found" in caplog.text


def test_val_split_without_any_label_keeps_the_last_epoch_and_has_no_map(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    (place.root / "labels/val/c.txt").unlink()
    with caplog.at_level("INFO"):
        run("train", [*place.arguments("train"), "--epochs", "3", "--patience", "1"])
    assert "1 images without labels, used as background" in caplog.text
    assert "val has no boxes, so mAP cannot be measured; best.pt is the last epoch" in caplog.text
    assert "-1.000" not in caplog.text
    result = json.loads((place.project / "exp/result.json").read_text())
    assert (result["metrics"]["boxes"], result["best_epoch"], result["metrics"]["AP"]) == (0, 2, None)
    assert load_checkpoint(place.project / "exp/weights/best.pt").epoch == 2
    assert "nan" not in (place.project / "exp/results.csv").read_text()


def test_one_picture_and_a_larger_batch_train(place: Place) -> None:
    (place.root / "images/train/b.jpg").unlink()
    run("train", [*place.arguments("train"), "--batch-size", "64", "--multi-scale"])
    assert json.loads((place.project / "exp/result.json").read_text())["epochs"] == 1


def test_picture_without_pixels_behind_a_good_header_is_skipped(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    path = place.root / "images/train/a.jpg"
    content = bytearray(path.read_bytes())
    marker = content.rindex(b"\xff\xda")
    path.write_bytes(bytes(content[:marker]) + b"\xff\xd9")
    with caplog.at_level("INFO"):
        run("train", place.arguments("train"))
    assert "train: 1 images, 1 boxes\n  1 images corrupt" in caplog.text
    assert f"{path} (corrupt: " in caplog.text


def test_pictures_of_every_kind_go_through_all_scripts(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    write_odd_pictures(place.root / "images/train")
    with caplog.at_level("INFO"):
        run("train", place.arguments("train"))
        run("val", [*place.arguments("val"), "--task", "train"])
        run("detect", [*place.arguments("detect"), "--save-txt", "--conf-thres", "0"])
    assert "train: 8 images" in caplog.text
    assert "corrupt" not in caplog.text
    result = json.loads((place.project / "exp3/result.json").read_text())
    assert (result["images"], result["skipped"]) == (8, 0)
    assert "rotated.jpg: 48x64" in caplog.text


@pytest.mark.parametrize(
    ("script", "break_it", "finding"),
    [
        ("train", writes(LABEL, "cat"), "a.txt"),
        (
            "val",
            writes("data.yaml", "trian: x\n"),
            "image_root, download, and not trian",
        ),
        ("detect", lambda root: (root / "tiny.pt").write_text("<html>"), "tiny.pt are a web page"),
    ],
    ids=["train", "val", "detect"],
)
def test_real_process_says_one_line_and_exits_with_2(
    place: Place, script: str, break_it: Breaks, finding: str
) -> None:
    break_it(place.root)
    command = [sys.executable, str(ROOT / f"{script}.py"), *place.arguments(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert finding in done.stderr
    assert "Traceback" not in done.stdout
