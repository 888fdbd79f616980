"""Agreement of heads and boxes, by hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch

from deploy.verification.agreement import BoxAgreement, HeadError


def rows(*boxes: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 6)


def test_head_errors_are_relative_to_the_largest_number() -> None:
    error = HeadError.of(torch.tensor([1.0, -4.0, 2.0, 0.0]), torch.tensor([1.0, -4.0, 2.4, 0.0]))
    assert error.largest == pytest.approx(0.1)
    assert error.mean == pytest.approx(0.025)


def test_value_that_is_not_finite_is_an_infinite_error() -> None:
    for broken in (math.nan, math.inf):
        assert HeadError.of(torch.tensor([broken, 1.0]), torch.tensor([1.0, 1.0])).largest == math.inf


def test_same_boxes_are_matched_in_any_order() -> None:
    first, second = (0, 0, 10, 10, 0.9, 0), (50, 50, 60, 70, 0.6, 1)
    agreement = BoxAgreement.of([rows(second, first)], [rows(first, second)])
    assert (agreement.expected, agreement.found, agreement.matched) == (2, 2, 2)
    assert (agreement.share, agreement.score_difference) == (1.0, 0.0)


def test_box_of_another_class_or_place_has_no_partner() -> None:
    box = (0, 0, 10, 10, 0.9, 0)
    assert BoxAgreement.of([rows((0, 0, 10, 10, 0.9, 1))], [rows(box)]).share == 0
    # 10 x 10 against 10 x 11.2: IoU .893.
    assert BoxAgreement.of([rows((0, 0, 10, 11.2, 0.9, 0))], [rows(box)]).matched == 0
    # 10 x 11: IoU .909, and a corner one pixel off.
    moved = BoxAgreement.of([rows((0, 0, 10, 11, 0.7, 0))], [rows(box)])
    assert moved.matched == 1
    assert moved.score_difference == pytest.approx(0.2)


def test_large_boxes_may_move_by_more_than_a_pixel_and_slivers_by_one() -> None:
    # 100 x 100 against 100 x 109: IoU .917. 2 x 90 moved by .9: IoU .38; by 1.1: .29.
    pairs = [((0, 0, 100, 100), (0, 0, 100, 109), 1), ((0, 0, 100, 100), (0, 0, 100, 113), 0)]
    pairs += [((5, 0, 7, 90), (5.9, 0, 7.9, 90), 1), ((5, 0, 7, 90), (6.1, 0, 8.1, 90), 0)]
    for box, other, matched in pairs:
        assert BoxAgreement.of([rows((*box, 0.9, 0))], [rows((*other, 0.9, 0))]).matched == matched


def test_a_box_is_used_once() -> None:
    box = (0, 0, 10, 10, 0.9, 0)
    agreement = BoxAgreement.of([rows(box, box)], [rows(box)])
    assert agreement.matched == 1
    assert agreement.share == pytest.approx(2 / 3)


def test_pictures_without_boxes_agree() -> None:
    assert BoxAgreement.of([rows()], [rows()]).share == 1
    assert BoxAgreement.of([rows((0, 0, 9, 9, 0.5, 0))], [rows()]).share == 0
