"""Boxes that only a near-tie decides are counted apart; wrong ones are not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from deploy.verification.agreement import BoxAgreement
from deploy.verification.heads import box_agreement
from deploy.verification.matching import matched_pairs, same_boxes
from deploy.verification.ties import Choice, TieRule
from utils.boxes.nms import non_max_suppression

TIE = 1e-4


def image_of(*places: tuple[float, ...]) -> Tensor:
    """(1, N, 7) decoded: left, top, right, bottom, then the scores of two classes."""
    rows = torch.tensor(places, dtype=torch.float32).view(-1, 6)
    x1, y1, x2, y2 = rows[:, :4].T
    boxes = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1)
    return torch.cat((boxes, torch.ones(len(rows), 1), rows[:, 4:]), 1)[None]


def rows(*boxes: tuple[float, ...]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).view(-1, 6)


def compared(found: Tensor, expected: Tensor) -> tuple[float, int]:
    """Share of boxes with partner, and ties."""
    agreement = box_agreement(found, expected, tie=TIE)
    return agreement.share, agreement.tied


def test_sliver_is_the_same_within_a_pixel_of_its_corners() -> None:
    sliver, moved, far = (10, 0, 12, 90, 0.9, 0), (10.9, 0, 12.9, 90, 0.9, 0), (11.1, 0, 13.1, 90, 0.9, 0)
    assert same_boxes(rows(sliver), rows(moved, far, (*moved[:5], 1))).tolist() == [[True, False, False]]


def test_pairs_are_as_many_as_can_be() -> None:
    # Slivers at 0, .9 and 1.8: the middle one may go with either neighbour.
    found = rows((0.9, 0, 1.4, 9, 0.9, 0), (0.0, 0, 0.5, 9, 0.9, 0))
    expected = rows((0.9, 0, 1.4, 9, 0.9, 0), (1.8, 0, 2.3, 9, 0.9, 0))
    assert matched_pairs(found, expected) == [(0, 1), (1, 0)]
    assert matched_pairs(expected, expected) == [(0, 0), (1, 1)]


def test_two_boxes_of_nearly_one_score_may_change_places_in_suppression() -> None:
    # IoU .6, so that one of the two goes.
    expected = image_of((0, 0, 40, 40, 0.80000, 0), (10, 0, 50, 40, 0.79999, 0))
    found = image_of((0, 0, 40, 40, 0.79998, 0), (10, 0, 50, 40, 0.79999, 0))
    assert compared(found, expected) == (1.0, 2)


def test_scores_that_differ_by_more_are_no_tie() -> None:
    expected = image_of((0, 0, 40, 40, 0.80, 0), (10, 0, 50, 40, 0.79, 0))
    found = image_of((0, 0, 40, 40, 0.78, 0), (10, 0, 50, 40, 0.79, 0))
    assert compared(found, expected) == (0.0, 0)


def test_what_only_a_tie_suppresses_is_a_tie_however_low_its_score() -> None:
    # The first suppresses the third (IoU .6), the second does not (IoU .33).
    third = (-10, 0, 30, 40, 0.4, 0)
    expected = image_of((0, 0, 40, 40, 0.80000, 0), (10, 0, 50, 40, 0.79999, 0), third)
    found = image_of((0, 0, 40, 40, 0.79998, 0), (10, 0, 50, 40, 0.79999, 0), third)
    assert compared(found, expected) == (1.0, 3)


def test_overlap_at_the_threshold_is_a_tie() -> None:
    # 40 x 40 moved by 15.2 pixels: IoU .4493; by 15.1: .4519; by 12: .538, and no longer the same box.
    expected = image_of((0, 0, 40, 40, 0.9, 0), (15.2, 0, 55.2, 40, 0.5, 0))
    assert compared(image_of((0, 0, 40, 40, 0.9, 0), (15.1, 0, 55.1, 40, 0.5, 0)), expected) == (1.0, 1)
    assert compared(image_of((0, 0, 40, 40, 0.9, 0), (12, 0, 52, 40, 0.5, 0)), expected)[0] < 1


def test_score_at_the_threshold_is_a_tie() -> None:
    assert compared(image_of((0, 0, 9, 9, 0.24997, 0)), image_of((0, 0, 9, 9, 0.25003, 0))) == (1.0, 1)
    assert compared(image_of((0, 0, 9, 9, 0.2490, 0)), image_of((0, 0, 9, 9, 0.2510, 0))) == (0.0, 0)


def test_classes_of_nearly_one_score_are_a_tie_and_swapped_ones_are_not() -> None:
    expected = image_of((0, 0, 9, 9, 0.40000, 0.39998))
    assert compared(image_of((0, 0, 9, 9, 0.39998, 0.40000)), expected) == (1.0, 2)
    assert compared(image_of((0, 0, 9, 9, 0.1, 0.8)), image_of((0, 0, 9, 9, 0.8, 0.1))) == (0.0, 0)


def test_last_box_of_an_image_may_be_another_of_nearly_its_score() -> None:
    def at_most_two(scores: tuple[float, float, float]) -> Tensor:
        return image_of(*((left, 0, left + 9, 9, score, 0) for left, score in zip((0, 20, 40), scores, strict=True)))

    def agreement(found: Tensor, expected: Tensor) -> BoxAgreement:
        rule = TieRule(conf=0.25, iou=0.45, max_det=2, score=TIE)
        kept = [non_max_suppression(item, conf=0.25, iou=0.45, max_det=2) for item in (found, expected)]
        return BoxAgreement.of(*kept, choices=[Choice(found=found[0], expected=expected[0], rule=rule)])

    near = agreement(at_most_two((0.9, 0.49999, 0.5)), at_most_two((0.9, 0.5, 0.49999)))
    assert (near.matched, near.tied, near.share) == (1, 2, 1.0)
    far = agreement(at_most_two((0.9, 0.4, 0.5)), at_most_two((0.9, 0.5, 0.4)))
    assert (far.matched, far.tied, far.share) == (1, 0, 0.5)


def test_missing_shifted_and_additional_boxes_are_no_ties() -> None:
    box, other = (0, 0, 20, 20, 0.8, 0), (60, 0, 80, 20, 0.7, 0)
    expected = image_of(box, other)
    assert compared(image_of(box), expected) == (2 / 3, 0)
    assert compared(image_of(box, other, (0, 60, 20, 80, 0.5, 0)), expected) == (4 / 5, 0)
    assert compared(image_of(*((x + 3, y, u + 3, v, *scores) for x, y, u, v, *scores in (box, other))), expected) == (
        0.0,
        0,
    )


@pytest.mark.parametrize("score", [0.8, 0.5])
def test_suppression_that_does_not_suppress_is_no_tie(score: float) -> None:
    """As a graph may have it: both boxes come out, equal in score or not."""
    places = image_of((0, 0, 40, 40, 0.8, 0), (10, 0, 50, 40, score, 0))
    rule = TieRule(conf=0.25, iou=0.45, score=TIE)
    choice = Choice(found=places[0], expected=places[0], rule=rule)
    kept = non_max_suppression(places, conf=0.25, iou=0.45)
    both = rows((0, 0, 40, 40, 0.8, 0), (10, 0, 50, 40, score, 0))
    twice = torch.cat((kept[0], kept[0]))
    for found in (both, twice):
        agreement = BoxAgreement.of([found], kept, choices=[choice])
        assert (agreement.tied, agreement.share) == (0, pytest.approx(2 / 3))


def test_suppression_that_takes_more_than_it_should_is_no_tie() -> None:
    # IoU .33, or two classes.
    for second in ((20, 0, 60, 40, 0.7, 0), (1, 0, 41, 40, 0, 0.7)):
        places = image_of((0, 0, 40, 40, 0.8, 0), second)
        choice = Choice(found=places[0], expected=places[0], rule=TieRule(conf=0.25, iou=0.45, score=TIE))
        kept = non_max_suppression(places, conf=0.25, iou=0.45)
        assert len(kept[0]) == 2
        assert BoxAgreement.of([kept[0][:1]], kept, choices=[choice]).share == pytest.approx(2 / 3)


# Places on a coarse grid, and scores of few values, so that overlaps and ties abound.
PLACES = st.lists(
    st.tuples(
        *(st.integers(0, 6), st.integers(0, 3), st.sampled_from((8, 16, 24)), st.sampled_from((8, 16))),
        *(st.sampled_from((0.1, 0.25, 0.3, 0.3 + TIE / 3, 0.6, 0.6 + TIE / 3)),) * 2,
    ),
    min_size=1,
    max_size=12,
)


def placed(places: list[tuple[float, ...]]) -> Tensor:
    return image_of(*((4 * x, 4 * y, 4 * x + w, 4 * y + h, *scores) for x, y, w, h, *scores in places))


@given(PLACES, st.integers(0, 2**31))
def test_noise_within_the_tie_is_never_a_difference(places: list[tuple[float, ...]], seed: int) -> None:
    expected = placed(places)
    noise = torch.rand(expected.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    found = expected.clone()
    found[..., :4] += 1e-3 * noise[..., :4]
    found[..., 5:] += 0.9 * TIE * noise[..., 5:]
    assert box_agreement(found, expected, tie=TIE).share == 1
    assert box_agreement(expected, found, tie=TIE).share == 1


@given(PLACES, st.data())
def test_box_that_is_missing_is_always_a_difference(places: list[tuple[float, ...]], data: st.DataObject) -> None:
    expected = placed(places)
    (kept,) = non_max_suppression(expected, conf=0.25, iou=0.45)
    sure = [row for row in kept if row[4] > 0.29]
    assume(sure)
    box = data.draw(st.sampled_from(sure))
    found = expected.clone()
    boxes = torch.cat((placed(places)[0, :, :4], torch.zeros(len(places), 2)), 1)
    # All places that give the same box in any class.
    corners = torch.cat((boxes[:, :2] - boxes[:, 2:4] / 2, boxes[:, :2] + boxes[:, 2:4] / 2, boxes[:, 4:]), 1)
    found[0, same_boxes(corners, torch.cat((box[:4], torch.zeros(2)))[None])[:, 0], 4] = 0
    assert box_agreement(found, expected, tie=TIE).share < 1
    assert box_agreement(expected, found, tie=TIE).share < 1
