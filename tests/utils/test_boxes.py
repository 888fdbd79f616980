"""Box algebra against numbers worked out by hand, and laws that hold for all boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from utils.boxes.boxes import (
    box_iou,
    clip_boxes,
    cxcywh_to_xyxy,
    ltwh_to_xyxy,
    unletterbox,
    xyxy_to_cxcywh,
    xyxy_to_ltwh,
)

CORNERS = np.array([[10.0, 20.0, 30.0, 60.0]])
KINDS = [np.asarray, torch.as_tensor]

sides = arrays(np.float64, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(1, 500))


def boxes_of(values: np.ndarray) -> np.ndarray:
    """Left, top, width, height of at least 1 each, as corners."""
    return ltwh_to_xyxy(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("convert", "expected"),
    [(xyxy_to_cxcywh, [20, 40, 20, 40]), (xyxy_to_ltwh, [10, 20, 20, 40])],
)
def test_corners_become_other_formats(kind: Any, convert: Any, expected: list[float]) -> None:
    converted = convert(kind(CORNERS))
    assert type(converted) is type(kind(CORNERS))
    assert converted.tolist() == [expected]


@pytest.mark.parametrize("kind", KINDS)
def test_other_formats_become_corners(kind: Any) -> None:
    assert cxcywh_to_xyxy(kind([[20.0, 40.0, 20.0, 40.0]])).tolist() == CORNERS.tolist()
    assert ltwh_to_xyxy(kind([[10.0, 20.0, 20.0, 40.0]])).tolist() == CORNERS.tolist()


def test_leading_dimensions_are_kept() -> None:
    assert xyxy_to_cxcywh(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


@given(sides)
def test_formats_come_back_as_they_went(values: np.ndarray) -> None:
    boxes = boxes_of(values)
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, atol=1e-9)
    np.testing.assert_allclose(ltwh_to_xyxy(xyxy_to_ltwh(boxes)), boxes, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_clipped_to_height_and_width(kind: Any) -> None:
    assert clip_boxes(kind([[-5.0, -1.0, 70.0, 30.0]]), (40, 60)).tolist() == [[0, 0, 60, 30]]


@pytest.mark.parametrize("kind", KINDS)
def test_iou_of_every_pair(kind: Any) -> None:
    first = kind([[0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 110.0]])
    # The same; half of it shared: 50 / (100 + 100 - 50); a quarter inside: 25 / 100.
    second = kind([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0], [0.0, 0.0, 5.0, 5.0]])
    expected = [[1, 1 / 3, 0.25], [0, 0, 0]]
    np.testing.assert_allclose(np.asarray(box_iou(first, second)), expected, atol=1e-9)


def test_iou_with_no_boxes_is_empty() -> None:
    assert box_iou(torch.zeros(0, 4), torch.ones(3, 4)).shape == (0, 3)


@given(sides, sides)
def test_iou_is_symmetric_and_between_0_and_1(first: np.ndarray, second: np.ndarray) -> None:
    one, other = boxes_of(first), boxes_of(second)
    iou = box_iou(one, other)
    np.testing.assert_allclose(iou, box_iou(other, one).T)
    assert (iou >= 0).all()
    assert (iou <= 1).all()
    np.testing.assert_allclose(np.diag(box_iou(one, one)), 1)


def test_letterboxed_box_maps_back_to_the_original() -> None:
    # 200 x 100 pixels at scale .5 are 100 x 50; 25 rows of border above.
    boxes = np.array([[10.0, 35.0, 60.0, 90.0]])
    original = unletterbox(boxes, scale=0.5, padding=(0, 25), original_hw=(100, 200))
    assert original.tolist() == [[20, 20, 120, 100]]  # 130 is clipped


@given(sides, st.floats(0.1, 4), st.floats(0, 64), st.floats(0, 64))
def test_unletterbox_undoes_scale_and_padding(values: np.ndarray, scale: float, left: float, top: float) -> None:
    boxes = boxes_of(values)
    moved = boxes * scale + np.array([left, top, left, top])
    back = unletterbox(moved, scale=scale, padding=(left, top), original_hw=(2000, 2000))
    np.testing.assert_allclose(back, boxes, atol=1e-6)
