"""Inputs that people really had, through the real scripts; each case once gave a wrong number without a word."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from commands.detect import detect
from commands.detect_config import DetectConfig
from commands.train import train
from commands.train_config import TrainConfig
from commands.val import val
from commands.val_config import ValConfig
from engine.evaluation.detection_scores import DetectionScores
from utils.errors import DataError
from utils.metrics.coco import Metrics, evaluate_coco
from utils.storage.checkpoint import load_checkpoint

# AP50 and AP of yolov5n v6 at 320 px on the eight photographs, counted by pycocotools.
BASE = (0.912, 0.673)


@dataclass(frozen=True, kw_only=True)
class Cases:
    """Runs the scripts on a case, writing below `out`."""

    root: Path
    weights: str
    out: Path

    def val(self, data: str, **settings: Any) -> DetectionScores:
        """Measure the network on the YAML `data`, a path below the cases."""
        common = {"img_size": 320, "workers": 0, "cache_dir": str(self.out), "project": str(self.out / "val")}
        found = val(ValConfig(**{"weights": (self.weights,), "data": str(self.root / data), **common, **settings}))
        assert isinstance(found, DetectionScores)
        return found

    def train(self, data: str, **settings: Any) -> None:
        """Train yolov5n for an epoch at 64 px."""
        common = {"img_size": (64,), "batch_size": 4, "workers": 0, "noplots": True, "noautoanchor": True}
        places = {"device": "cpu", "cache_dir": str(self.out), "project": str(self.out / "train"), "epochs": 1}
        network = {} if "weights" in settings else {"cfg": "yolov5n.yaml"}
        train(TrainConfig(**{"data": str(self.root / data), **common, **places, **network, **settings}))

    def predictions(self, run: str = "exp") -> list[dict[str, Any]]:
        """The predictions.json of a run of `val`."""
        found: list[dict[str, Any]] = json.loads((self.out / "val" / run / "predictions.json").read_text())
        return found


@pytest.fixture
def cases(shared: Path, tmp_path: Path) -> Cases:
    root = shared / "cases" / "data"
    if not root.is_dir():
        pytest.skip("no ../shared beside the project: cases are not part of it")
    return Cases(root=root, weights=str(shared / "weights" / "yolov5n_v6_coco.pt"), out=tmp_path)


def scores(metrics: Metrics) -> tuple[float, float]:
    return round(metrics.AP50, 3), round(metrics.AP, 3)


@pytest.mark.parametrize(
    "data",
    [
        "_base/data.yaml",
        "coco-size-differs/data.yaml",
        "coco-iscrowd-string/str.yaml",
        "coco-duplicate-annotations/data.yaml",
        "coco-duplicate-annotations/txt.yaml",
        "coco-ids-as-text/via.yaml",
        "coco-ids-as-text/float.yaml",
        "coco-ids-as-text/size.yaml",
        "coco-ids-as-text/noncat.yaml",
        "coco-submission/data.yaml",
        "label-file-text/data.yaml",
    ],
)
def test_the_same_objects_give_the_same_numbers(cases: Cases, data: str) -> None:
    found = cases.val(data).metrics
    assert scores(found) == BASE
    assert (round(found.precision, 3), round(found.recall, 3)) == (0.944, 0.918)


def test_images_of_every_suffix_are_read(cases: Cases) -> None:
    found = cases.val("unknown-suffixes/data.yaml")
    # One of them was stored again as AVIF, which changed its pixels a little.
    assert (found.images, found.boxes, *scores(found.metrics)) == (8, 25, 0.908, 0.671)


def test_exif_turned_images_with_boxes_of_the_stored_pixels(cases: Cases) -> None:
    assert scores(cases.val("coco-exif-raw-size/data.yaml").metrics) == (0.913, 0.681)


@pytest.mark.parametrize(
    ("data", "single_cls", "expected"),
    [("one.yaml", False, (0.898, 0.664)), ("two.yaml", False, (0.898, 0.664)), ("one.yaml", True, (0.855, 0.599))],
)
def test_crowds_count_as_coco_counts_them(
    cases: Cases, data: str, single_cls: bool, expected: tuple[float, float]
) -> None:
    assert scores(cases.val(f"coco-crowd-lost/{data}", single_cls=single_cls).metrics) == expected


@pytest.mark.parametrize("data", ["data.yaml", "named.yaml"])
def test_categories_in_another_order_mean_the_same_classes(cases: Cases, data: str) -> None:
    cases.train(f"coco-category-order/{data}")
    best = cases.out / "train/exp/weights/best.pt"
    names = load_checkpoint(best).names
    ordered = cases.val(f"coco-category-order/{data}", weights=(str(best),), img_size=64)
    assert set(ordered.metrics.per_class) == set(names)
    # A detector that finds exactly the true boxes of val.json, named by name, has no fault.
    truth = json.loads((cases.root / "coco-category-order/val.json").read_text())
    found = [{**item, "score": 1.0} for item in truth["annotations"]]
    assert pytest.approx(1) == evaluate_coco(truth, found).AP
    counts = dict.fromkeys(names, 0)
    for item in truth["annotations"]:
        counts[next(entry["name"] for entry in truth["categories"] if entry["id"] == item["category_id"])] += 1
    curves = ordered.curves
    assert {names[int(k)]: int(n) for k, n in zip(curves.classes, curves.num_true, strict=True)} == counts


def test_labels_keep_the_names_of_their_images(cases: Cases) -> None:
    common = {"weights": (cases.weights,), "img_size": 320, "nosave": True, "save_txt": True, "save_json": True}
    result = detect(
        DetectConfig(source=str(cases.root / "detect-label-names/pics"), project=str(cases.out / "a"), **common)
    )
    labels = result.folder / "labels"
    assert sorted(path.name for path in labels.iterdir()) == ["a b.txt", "a_b.txt", "my photo (1).txt"]
    assert {line.split()[0] for line in (labels / "a b.txt").read_text().splitlines()} == {"15", "62", "63"}
    cams = cases.root / "detect-label-names/cams"
    result = detect(DetectConfig(source=f"{cams}/**/*.jpg", project=str(cases.out / "b"), **common))
    for record in json.loads((result.folder / "detections.json").read_text()):
        below = Path(record["path"]).relative_to(cams).with_suffix(".txt")
        assert record["files"]["label"] == f"labels/{below.as_posix()}"
        assert len((result.folder / "labels" / below).read_text().splitlines()) == len(record["detections"])


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        ("train-on-nothing/onebased.yaml", "class ids run from 1 to 1, but must start at 0"),
        ("train-on-nothing/jpegimages.yaml", "no image has a label file"),
        ("coco-iscrowd-string/ones.yaml", "iscrowd is 1 for most objects"),
        ("coco-submission/testdev.yaml", "has no 'train:' line"),
        ("yolo-pixel-coordinates/data.yaml", "has no 'train:' line"),
    ],
)
def test_nothing_to_learn_from_is_refused(cases: Cases, data: str, finding: str) -> None:
    with pytest.raises(DataError, match=finding):
        cases.train(data)
    assert not (cases.out / "train").exists()


def test_labels_in_pixels_are_refused_by_name(cases: Cases) -> None:
    with pytest.raises(DataError, match=r"000000000785.txt, line 1: 195.1 is not a fraction of the image"):
        cases.val("yolo-pixel-coordinates/data.yaml")


@pytest.mark.parametrize("data", ["data.yaml", "data2.yaml", "data3.yaml"])
def test_exports_of_other_tools_load_as_downloaded(cases: Cases, data: str) -> None:
    found = cases.val(f"roboflow-export/{data}")
    assert (found.images, found.boxes, *scores(found.metrics)) == (2, 4, 1.0, 0.784)


def test_predictions_can_be_scored_with_official_tools(cases: Cases) -> None:
    cases.val("coco-submission/data.yaml")
    truth = json.loads((cases.root / "_base/base.json").read_text())
    assert scores(evaluate_coco(truth, cases.predictions(), engine="pycocotools")) == BASE
    file_names = {item["id"]: item["file_name"] for item in truth["images"]}
    assert all(item["file_name"] == file_names[item["image_id"]] for item in cases.predictions())


def test_a_test_set_without_annotations_can_be_predicted_on(cases: Cases, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cases.val("coco-submission/testdev.yaml", task="test")
    assert "mAP cannot be measured" in caplog.text
    assert "-1.000" not in caplog.text
    truth = json.loads((cases.root / "_base/base.json").read_text())
    assert scores(evaluate_coco(truth, cases.predictions(), engine="pycocotools")) == BASE
    assert json.loads((cases.out / "val/exp/result.json").read_text())["AP"] is None


def test_val_without_boxes_keeps_the_last_epoch(cases: Cases, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        cases.train("val-without-boxes/data.yaml", weights=cases.weights, epochs=3, patience=1)
    assert "val has no boxes, so mAP cannot be measured; best.pt is the last epoch" in caplog.text
    assert "-1.000" not in caplog.text
    assert load_checkpoint(cases.out / "train/exp/weights/best.pt").epoch == 2


@pytest.mark.parametrize(("data", "kind"), [("tif.yaml", "000000004795.tif"), ("jpg.yaml", "000000004795.jpg")])
def test_damaged_images_are_named_counted_and_skipped(
    cases: Cases, data: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = cases.val(f"damaged-and-odd-pixels/{data}")
    assert found.images == 7
    assert "1 images corrupt or of an unreadable kind, skipped" in caplog.text
    assert f"{kind} (corrupt: " in caplog.text


def test_detect_names_damaged_images_and_goes_on(cases: Cases, caplog: pytest.LogCaptureFixture) -> None:
    folder = cases.root / "damaged-and-odd-pixels/jpg/images/val"
    result = detect(
        DetectConfig(weights=(cases.weights,), source=str(folder), img_size=320, project=str(cases.out), nosave=True)
    )
    assert (result.images, result.skipped) == (7, 1)
    assert "000000004795.jpg cannot be read: part of it is missing" in caplog.text


def test_links_to_folders_are_followed(cases: Cases) -> None:
    copy = shutil.copytree(cases.root / "symlinked-subfolder", cases.out / "set", symlinks=True)
    for kind in ("images", "labels"):
        os.makedirs(copy / kind / "val", exist_ok=True)
        link = copy / kind / "val" / "b"
        link.unlink(missing_ok=True)
        link.symlink_to(copy / "store" / kind / "b")
    found = val(
        ValConfig(
            weights=(cases.weights,), data=str(copy / "data.yaml"), img_size=320, workers=0, project=str(cases.out)
        )
    )
    assert isinstance(found, DetectionScores)
    assert found.images == 4


def test_polygons_and_our_own_scores_are_labels(cases: Cases) -> None:
    found = cases.val("yolo-polygon-lines/poly.yaml")
    assert (found.boxes, *scores(found.metrics)) == (4, 1.0, 0.784)
    source = cases.root / "yolo-polygon-lines/conf"
    result = detect(
        DetectConfig(
            weights=(cases.weights,),
            source=str(source / "images/val"),
            img_size=320,
            project=str(cases.out / "d"),
            save_txt=True,
            save_conf=True,
            nosave=True,
        )
    )
    again = cases.out / "auto"
    shutil.copytree(source / "images", again / "images")
    shutil.copytree(result.folder / "labels", again / "labels" / "val")
    shutil.copy(source / "data.yaml", again)
    labelled = val(
        ValConfig(
            weights=(cases.weights,), data=str(again / "data.yaml"), img_size=320, workers=0, project=str(cases.out)
        )
    )
    assert isinstance(labelled, DetectionScores)
    assert (labelled.boxes, *scores(labelled.metrics)) == (3, 1.0, 1.0)
