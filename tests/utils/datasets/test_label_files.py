from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.boxes.boxes import cxcywh_to_xyxy
from utils.datasets.reading.labels import LabelFaults, clean_labels, label_path, read_label_file
from utils.errors import DataError


def test_the_last_images_folder_becomes_labels() -> None:
    assert label_path("/images/set/images/val/a.b.jpg") == Path("/images/set/labels/val/a.b.txt")


def test_labels_beside_the_picture_are_found(tmp_path: Path) -> None:
    beside = tmp_path / "images" / "a.txt"
    beside.parent.mkdir()
    beside.write_text("")
    assert label_path(tmp_path / "images" / "a.jpg") == beside
    assert label_path("/photos/a.jpg") == Path("/photos/a.txt")


def test_lines_are_read_and_blank_ones_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("1 0.5 0.25 0.1 0.2\n\n0 .1 .1 1e-1 .05\n")
    file = read_label_file(path)
    assert file is not None
    assert (file.num_outlines, file.num_confidences) == (0, 0)
    np.testing.assert_array_equal(file.rows, [[1, 0.5, 0.25, 0.1, 0.2], [0, 0.1, 0.1, 0.1, 0.05]])


def test_a_missing_file_is_none_and_an_empty_one_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    empty = read_label_file(tmp_path / "empty.txt")
    assert read_label_file(tmp_path / "none.txt") is None
    assert empty is not None
    assert empty.rows.shape == (0, 5)


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("0 0.5 0.5 0.1", "4 columns"),
        ("0 0.5 0.5 0.1 0.1 7", "6 columns and 7 at the end"),
        ("cat 0.5 0.5 0.1 0.1", "not all numbers"),
        ("0 195.1 40 20 30", "195.1 is not a fraction of the image"),
        ("0 10 20 30 20 30 40 10 40", "coordinates must be normalised"),
        ("0 nan 0.5 0.1 0.1", "not finite"),
        ("0 0.5 inf 0.1 0.1", "not finite"),
        ("0.5 0.5 0.5 0.1 0.1", "class id 0.5"),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path: Path, line: str, finding: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError) as caught:
        read_label_file(path)
    assert f"{path}, line 2" in str(caught.value)
    assert finding in str(caught.value)


@pytest.mark.parametrize(
    ("line", "box", "outlines", "confidences"),
    [
        ("2 0.5 0.5 0.2 0.4 0.75", (0.5, 0.5, 0.2, 0.4), 0, 1),
        ("2 0.1 0.2 0.5 0.2 0.5 0.6", (0.3, 0.4, 0.4, 0.4), 1, 0),  # a triangle
        ("2 0.1 0.2 0.5 0.2 0.5 0.6 0.9", (0.3, 0.4, 0.4, 0.4), 1, 1),
        ("2 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6", (0.3, 0.4, 0.4, 0.4), 1, 0),  # a turned box
        ("2 0 0 1 0 1 1 0 1 0 0", (0.5, 0.5, 1, 1), 1, 0),  # closed, and of the numbers that keypoints have
        ("2 0.5 0.5 0.2 0.4 0.45 0.4 2 0.55 0.6 0", (0.5, 0.5, 0.2, 0.4), 1, 0),  # a box and two keypoints
    ],
)
def test_lines_of_other_tasks_give_their_box(
    tmp_path: Path, line: str, box: tuple[float, ...], outlines: int, confidences: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{line}\n")
    file = read_label_file(path)
    assert file is not None
    np.testing.assert_allclose(file.rows, [[2, *box]])
    assert (file.num_outlines, file.num_confidences) == (outlines, confidences)


def test_label_files_may_be_utf16(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n", encoding="utf-16")
    file = read_label_file(tmp_path / "a.txt")
    assert file is not None
    np.testing.assert_array_equal(file.rows, [[0, 0.5, 0.5, 0.1, 0.1]])


def test_bytes_that_are_no_text_are_a_data_error(tmp_path: Path) -> None:
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\x80\x81\x82")
    with pytest.raises(DataError, match="binary.txt"):
        read_label_file(path)


def test_faults_are_counted_and_mended() -> None:
    rows = np.array(
        [
            [0, 0.5, 0.5, 0.2, 0.2],
            [0, 0.5, 0.5, 0.2, 0.2],  # duplicate
            [2, 0.5, 0.5, 0.2, 0.2],  # unknown class
            [-1, 0.5, 0.5, 0.2, 0.2],  # unknown class
            [1, 0.9, 0.5, 0.4, 0.2],  # reaches x = 1.1: clipped to 0.7 .. 1.0
            [1, 0.5, 0.5, 0.0, 0.2],  # no width
            [1, 3.0, 0.5, 0.1, 0.1],  # wholly outside
        ]
    )
    clean = clean_labels(rows, num_classes=2)
    labels, faults = clean.labels, clean.faults
    assert clean.kept.tolist() == [0, 4]
    assert clean.is_clipped.tolist() == [False, True]
    assert faults == LabelFaults(out_of_range=2, outside=2, duplicate=1, zero_area=2)
    np.testing.assert_allclose(labels, [[0, 0.5, 0.5, 0.2, 0.2], [1, 0.85, 0.5, 0.3, 0.2]], rtol=1e-6)
    assert labels.dtype == np.float32


def test_rounding_beyond_the_border_is_no_fault() -> None:
    clean = clean_labels(np.array([[0, 0.5, 0.5, 1.000001, 1.0]]), num_classes=1)
    labels, faults = clean.labels, clean.faults
    assert faults == LabelFaults()
    np.testing.assert_allclose(labels[0], [0, 0.5, 0.5, 1, 1])


def test_a_negative_width_is_not_turned_round() -> None:
    clean = clean_labels(np.array([[0, 0.5, 0.5, -0.2, 0.2]]), num_classes=1)
    labels, faults = clean.labels, clean.faults
    assert len(labels) == 0
    assert faults.zero_area == 1


def test_single_class_still_drops_unknown_ids() -> None:
    rows = np.array([[1, 0.5, 0.5, 0.2, 0.2], [9, 0.1, 0.1, 0.1, 0.1]])
    clean = clean_labels(rows, num_classes=2, single_cls=True)
    labels, faults = clean.labels, clean.faults
    assert labels[:, 0].tolist() == [0]
    assert faults.out_of_range == 1


@given(
    st.lists(
        st.tuples(st.integers(-1, 3), *[st.floats(-0.5, 1.5)] * 2, *[st.floats(-0.1, 2)] * 2),
        max_size=8,
    )
)
def test_clean_labels_lie_inside_and_are_unique(rows: list[tuple[float, ...]]) -> None:
    clean = clean_labels(np.array(rows, np.float64).reshape(-1, 5), num_classes=3)
    labels, faults = clean.labels, clean.faults
    corners = cxcywh_to_xyxy(labels[:, 1:])
    assert ((corners >= -1e-6) & (corners <= 1 + 1e-6)).all()
    assert len(np.unique(labels, axis=0)) == len(labels)
    assert len(labels) + faults.out_of_range + faults.duplicate + faults.zero_area == len(rows)
