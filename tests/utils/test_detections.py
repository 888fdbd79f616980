"""Detections: counts, choice, JSON, pandas, label lines, crops, drawing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from utils.datasets.reading.images import read_image
from utils.detections.detections import Detections, class_ids_of
from utils.errors import ConfigError, DataError

NAMES = ("RBC", "WBC", "Platelets")


def make_detections() -> Detections:
    rows = np.array([[10, 20, 50, 60, 0.9, 0], [0, 0, 20, 10, 0.8, 1], [60, 40, 100, 80, 0.5, 0]], dtype=np.float32)
    image = np.zeros((80, 100, 3), np.uint8)
    image[20:60, 10:50] = (255, 0, 0)
    return Detections.from_rows(rows, names=NAMES, image=image, path="blood.jpg")


def test_rows_become_typed_columns_and_remember_the_image_size() -> None:
    found = make_detections()
    assert (found.xyxy.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int64)
    assert found.image_hw == (80, 100)
    assert len(found) == 3


def test_text_counts_classes_in_order_of_id() -> None:
    assert str(make_detections()) == "2 RBC, 1 WBC"
    assert str(make_detections()[[]]) == "no detections"


def test_index_slice_and_mask_choose_boxes_of_the_same_image() -> None:
    found = make_detections()
    assert found[1].xyxy.tolist() == [[0, 0, 20, 10]]
    assert found[-1].scores.tolist() == [0.5]
    assert found[:2].class_ids.tolist() == [0, 1]
    assert len(found[found.scores > 0.6]) == 2
    assert found[1].path == "blood.jpg"
    with pytest.raises(IndexError):
        found[3]


def test_filter_takes_scores_and_classes_by_id_or_name() -> None:
    found = make_detections()
    assert found.filter(conf=0.8).scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.filter(classes=["RBC"]).class_ids.tolist() == [0, 0]
    assert found.filter(classes=[1]).class_ids.tolist() == [1]
    assert len(found.filter(classes=[])) == 0


@pytest.mark.parametrize("unknown", ["dog", 3, -1, "3"])
def test_unknown_class_is_refused_and_the_known_ones_listed(unknown: int | str) -> None:
    with pytest.raises(ConfigError, match="RBC, WBC, Platelets"):
        class_ids_of([unknown], names=NAMES)


def test_class_named_by_a_digit_goes_before_the_id() -> None:
    assert class_ids_of(["1", 1, "7"], names=("7", "1", "x")) == [1, 1, 0]


def test_json_holds_name_score_and_corners() -> None:
    first = json.loads(make_detections().to_json())[0]
    assert first == {
        "name": "RBC",
        "class_id": 0,
        "score": 0.9,
        "box": {"x1": 10.0, "y1": 20.0, "x2": 50.0, "y2": 60.0},
    }


def test_pandas_frame_has_the_columns_hub_users_know() -> None:
    frame = make_detections().to_pandas()
    assert list(frame.columns) == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert frame.name.tolist() == ["RBC", "WBC", "RBC"]
    assert frame.xmax.tolist() == [50, 20, 100]


def test_missing_pandas_is_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        make_detections().to_pandas()


def test_label_lines_are_normalised_to_the_image() -> None:
    lines = make_detections().to_yolo_lines()
    # (10, 20, 50, 60) in 100 x 80: centre (30, 40), size (40, 40).
    assert lines[0] == "0 0.3 0.5 0.4 0.5"
    assert make_detections().to_yolo_lines(with_conf=True)[0] == "0 0.3 0.5 0.4 0.5 0.9"


def test_crops_are_the_boxes_with_padding_inside_the_image() -> None:
    found = make_detections()
    exact = found.crops(padding=0)
    assert [crop.shape for crop in exact] == [(40, 40, 3), (10, 20, 3), (40, 40, 3)]
    assert (exact[0] == (255, 0, 0)).all()
    # Padding of 10 is cut off at the image's left-top and right-bottom corners.
    assert [crop.shape for crop in found.crops(padding=10)] == [(60, 60, 3), (20, 30, 3), (50, 50, 3)]


def test_box_of_no_area_still_gives_a_crop_of_a_pixel() -> None:
    row = np.array([[100, 80, 100, 80, 0.9, 0]], dtype=np.float32)
    found = Detections.from_rows(row, names=NAMES, image=np.zeros((80, 100, 3), np.uint8))
    assert found.crops(padding=0)[0].shape == (1, 1, 3)


def test_drawing_changes_a_copy_and_reads_back_from_the_file(tmp_path) -> None:
    found = make_detections()
    before = found.image.copy()
    drawn = found.draw(line_thickness=1)
    assert (found.image == before).all()
    assert (drawn != before).any()
    found.save(tmp_path / "drawn.png")
    assert read_image(tmp_path / "drawn.png").shape == (80, 100, 3)


def test_hidden_labels_leave_only_the_boxes() -> None:
    found = make_detections()[:1]
    with_label = (found.draw() != found.image).any(2).sum()
    without = (found.draw(hide_labels=True) != found.image).any(2).sum()
    assert 0 < without < with_label


def test_unknown_picture_suffix_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"\.jpg"):
        make_detections().save(tmp_path / "drawn.txt")


def test_drawing_without_an_image_says_so() -> None:
    found = Detections(
        xyxy=np.zeros((0, 4), np.float32),
        scores=np.zeros(0, np.float32),
        class_ids=np.zeros(0, np.int64),
        names=NAMES,
        image_hw=(8, 8),
    )
    with pytest.raises(DataError, match="no image"):
        found.draw()


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores: got \(2,\), expected \(1,\)"):
        Detections(
            xyxy=np.zeros((1, 4), np.float32),
            scores=np.zeros(2, np.float32),
            class_ids=np.zeros(1, np.int64),
            names=NAMES,
            image_hw=(8, 8),
        )
