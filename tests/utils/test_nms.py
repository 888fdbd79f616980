"""Suppression against a naive reference, by hand, and against the boxes of the v5.0 code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.boxes import nms
from utils.boxes.boxes import box_iou
from utils.boxes.nms import greedy_nms, non_max_suppression


def naive_nms(boxes: np.ndarray, scores: np.ndarray, iou: float) -> list[int]:
    """Take the best box left, drop what overlaps it, repeat."""
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if box_iou(boxes[[best]], boxes[[i]])[0, 0] <= iou]
    return kept


def decoded(*rows: tuple[float, ...]) -> torch.Tensor:
    """One image: cx, cy, w, h, objectness, class probabilities."""
    return torch.tensor([rows])


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.floats(0.1, 0.9))
def test_greedy_nms_keeps_what_the_naive_one_keeps(seed: int, count: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, (count, 2))], 1).astype(np.float32)
    scores = rng.integers(0, 10, count).astype(np.float32) / 10  # ties occur
    assert greedy_nms(boxes, scores, iou, max_keep=1000).tolist() == naive_nms(boxes, scores, iou)


@pytest.mark.parametrize("max_keep", [7, 1000])
def test_greedy_nms_gives_the_same_over_several_blocks(monkeypatch: pytest.MonkeyPatch, max_keep: int) -> None:
    monkeypatch.setattr(nms, "_BLOCK", 16)
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 100, (150, 2))
    boxes = np.concatenate([corner, corner + 30], 1).astype(np.float32)
    scores = rng.uniform(0, 1, 150).astype(np.float32)
    assert greedy_nms(boxes, scores, 0.4, max_keep=max_keep).tolist() == naive_nms(boxes, scores, 0.4)[:max_keep]


def test_weaker_of_two_overlapping_boxes_goes() -> None:
    # IoU of the first two is 9 / 11; the third stands apart.
    image = decoded((50, 50, 20, 20, 0.8, 1), (52, 50, 20, 20, 0.9, 1), (150, 50, 20, 20, 0.5, 1))
    (found,) = non_max_suppression(image, iou=0.45)
    assert found[:, :4].tolist() == [[42, 40, 62, 60], [140, 40, 160, 60]]
    assert found[:, 4].tolist() == pytest.approx([0.9, 0.5])


def test_score_is_objectness_times_class_and_must_exceed_the_threshold() -> None:
    image = decoded((50, 50, 20, 20, 0.9, 0.2, 0.6), (150, 50, 20, 20, 0.9, 0.2, 0.1))
    (found,) = non_max_suppression(image, conf=0.25)
    assert found[0, 4:].tolist() == pytest.approx([0.54, 1])
    assert len(found) == 1


def test_classes_do_not_suppress_one_another_unless_agnostic() -> None:
    image = decoded((50, 50, 20, 20, 1, 0.9, 0), (50, 50, 20, 20, 1, 0, 0.8))
    assert len(non_max_suppression(image)[0]) == 2
    (found,) = non_max_suppression(image, agnostic=True)
    assert found[:, 5].tolist() == [0]


def test_multi_label_gives_a_box_for_every_class_above_the_threshold() -> None:
    image = decoded((50, 50, 20, 20, 1, 0.9, 0.7, 0.1))
    (found,) = non_max_suppression(image, multi_label=True)
    assert found[:, 5].tolist() == [0, 1]
    assert len(non_max_suppression(image)[0]) == 1


def test_only_wanted_classes_are_kept() -> None:
    image = decoded((50, 50, 20, 20, 1, 0.9, 0), (150, 50, 20, 20, 1, 0, 0.8))
    assert non_max_suppression(image, classes=[1])[0][:, 5].tolist() == [1]
    assert non_max_suppression(image, classes=[])[0].shape == (0, 6)


def test_no_more_than_max_det_boxes_are_given() -> None:
    image = decoded(*((50 * i, 50, 20, 20, 0.5 + i / 100, 1) for i in range(10)))
    (found,) = non_max_suppression(image, max_det=3)
    assert found[:, 4].tolist() == pytest.approx([0.59, 0.58, 0.57])


@pytest.mark.parametrize("multi_label", [False, True])
def test_image_without_boxes_gives_an_empty_tensor(multi_label: bool) -> None:
    images = torch.zeros(2, 5, 8)
    found = non_max_suppression(images, multi_label=multi_label)
    assert [tuple(boxes.shape) for boxes in found] == [(0, 6), (0, 6)]
    assert non_max_suppression(torch.zeros(1, 0, 8))[0].shape == (0, 6)


def test_boxes_of_the_golden_file_are_those_of_v5(shared: Path) -> None:
    golden = np.load(shared / "golden/yolov5s_v5_forward.npz")
    (found,) = non_max_suppression(torch.from_numpy(golden["decoded"])[None], conf=0.25, iou=0.45)
    expected = golden["nms_conf25_iou45"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
