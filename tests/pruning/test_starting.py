"""Which network is recommended to start from, by costs and scores that are given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pruning.selection.starting import (
    CUT_EXPONENT,
    LEAD_EXPONENT,
    LEAST_GAIN,
    Candidate,
    Comparison,
    higher_size,
    lower_sizes,
)


def candidate(name: str, cost: float, score: float, *, size: int = 224) -> Candidate:
    return Candidate(name=f"1_{name}_{size}", weights=f"{name}.pt", img_size=(size,), cost=cost, score=score)


def comparison(limit: float, *candidates: Candidate) -> Comparison:
    return Comparison(quantity="ms", limit=limit, metric="AP", epochs=5, candidates=candidates)


# The smaller member has 26 % of the larger one's multiply-adds; scores are those after 5 epochs.
LARGE, SMALL = candidate("yolov5s", 10.0, 0.185), candidate("yolov5n", 2.6, 0.107)


def test_estimate_goes_through_what_was_measured() -> None:
    at_small = comparison(2.6, LARGE, SMALL)
    assert at_small.estimate(LARGE) == pytest.approx(0.270 / 0.341, abs=0.01)
    assert at_small.estimate(SMALL) == pytest.approx(0.275 / 0.341, abs=0.005)
    assert comparison(5.0, LARGE).estimate(LARGE) == pytest.approx(0.5**CUT_EXPONENT)


@pytest.mark.parametrize(
    ("limit", "recommended", "is_dense"),
    [
        (10.0, LARGE, True),  # fast enough as it is
        (8.0, LARGE, False),  # between the two pruning the larger one pays
        (3.0, SMALL, True),
        (2.6, SMALL, True),  # at the speed of the smaller one it does not
        (1.3, SMALL, False),  # beyond it that is pruned further
    ],
)
def test_larger_network_is_pruned_only_between_the_two(limit: float, recommended: Candidate, is_dense: bool) -> None:
    found = comparison(limit, LARGE, SMALL)
    assert (found.recommended, found.is_dense(found.recommended)) == (recommended, is_dense)


def test_cut_must_promise_more_than_chance_between_seeds() -> None:
    dense, cut = candidate("n", 1.0, 0.2), candidate("s", 2.0, 0.2)
    even = ((1 + LEAST_GAIN) / 0.5**CUT_EXPONENT) ** (1 / LEAD_EXPONENT)
    assert comparison(1.0, replace(cut, score=0.2 * even * 0.999), dense).recommended is dense
    assert comparison(1.0, replace(cut, score=0.2 * even * 1.001), dense).recommended is not dense


@pytest.mark.parametrize(("score", "is_cut"), [(0.13, False), (0.20, True)])
def test_smaller_network_with_more_pixels_is_cut_where_they_are_worth_it(score: float, is_cut: bool) -> None:
    # Half as much again, for more pixels: the cut to two thirds costs 7 %, and must promise 5 % more.
    more = candidate("yolov5n", 3.9, score, size=288)
    found = comparison(2.6, LARGE, SMALL, more)
    assert found.best_cut is more
    assert (found.recommended is more) == is_cut
    words = "start from yolov5n.pt at 288 px and prune it from 3.90 to 2.60 ms: it should reach about 93%"
    assert found.reason.startswith(words if is_cut else "take the dense yolov5n.pt at 224 px; pruning will not pay")


@pytest.mark.parametrize(
    ("given", "stride", "lower", "higher"),
    [
        ((224,), 32, [(192,), (128,)], (288,)),
        ((320,), 32, [(256,), (192,)], (384,)),
        ((640,), 32, [(512,), (384,)], (800,)),
        ((64,), 16, [(48,), (32,)], (80,)),
        ((64, 128), 32, [(64, 96), (32, 64)], (96, 160)),
        ((100,), 32, [(64,)], (160,)),  # images are 128 px
        ((32,), 32, [], (64,)),
    ],
)
def test_sizes_beside_the_given_one_are_multiples_of_the_stride(
    given: tuple[int, ...], stride: int, lower: list[tuple[int, ...]], higher: tuple[int, ...]
) -> None:
    assert lower_sizes(given, stride=stride) == lower
    assert higher_size(given, stride=stride) == higher


def test_among_equals_the_largest_dense_network_and_the_least_cut_are_best() -> None:
    candidates = [
        candidate("a", 1.0, 0.0),
        candidate("b", 2.0, 0.0),
        candidate("c", 3.0, 0.0),
        candidate("d", 4.0, 0),
    ]
    found = comparison(2.5, *candidates)
    assert (found.best_dense, found.best_cut, found.recommended) == (candidates[1], candidates[2], candidates[1])


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            comparison(2.6, LARGE, SMALL),
            "take the dense yolov5n.pt at 224 px; pruning will not pay here: it takes 2.60 of 2.60 ms and should "
            "reach about 80% of the best mAP without a cut, yolov5s.pt at 224 px cut to 26% about 78%; a cut must "
            "promise 5% more",
        ),
        (
            comparison(20.0, LARGE, SMALL),
            "take the dense yolov5s.pt at 224 px; no candidate needs a cut: it takes 10.00 of 20.00 ms and should "
            "reach about 100% of the best mAP without a cut",
        ),
        (
            comparison(8.0, LARGE, SMALL),
            "start from yolov5s.pt at 224 px and prune it from 10.00 to 8.00 ms: it should reach about 96% of the "
            "best mAP without a cut, the dense yolov5n.pt at 224 px about 80%",
        ),
        (
            comparison(1.3, LARGE, SMALL),
            "start from yolov5n.pt at 224 px and prune it from 2.60 to 1.30 ms: it should reach about 71% of the "
            "best mAP without a cut, and no candidate is fast or small enough as it is",
        ),
    ],
)
def test_reason_is_one_sentence(found: Comparison, sentence: str) -> None:
    assert found.reason == sentence


def test_table_lists_each_candidate_and_costs_in_their_unit() -> None:
    lines = comparison(2.6, LARGE, SMALL).as_text().splitlines()
    assert [line.split() for line in lines] == [
        ["network", "px", "ms", "cut", "to", "probe", "mAP", "estimate"],
        ["yolov5s.pt", "224", "10.00", "26%", "0.185", "78%"],
        ["yolov5n.pt", "224", "2.60", "-", "0.107", "80%"],
    ]
    counted = Comparison(quantity="macs", limit=5e8, metric="AP", epochs=1, candidates=[candidate("n", 1e9, 0.1)])
    assert counted.as_text().splitlines()[1].split()[:4] == ["n.pt", "224", "1.000", "50%"]
    assert counted.target == "macs=500000000"


def test_result_has_the_rule_the_rows_and_the_reason() -> None:
    found = comparison(2.6, LARGE, SMALL)
    values = found.to_dict()
    assert values["rule"]["cut_exponent"] == CUT_EXPONENT
    assert [row["cut_to"] for row in values["candidates"]] == [0.26, 1.0]
    assert (values["recommended"], values["reason"]) == ("1_yolov5n_224", found.reason)
