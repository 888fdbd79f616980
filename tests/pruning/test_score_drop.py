"""The decision how far rounds of pruning go, on scores alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pruning.selection.score_drop import DROP_NAME, ScoreDrop
from pruning.selection.targets import STEP, parse_target, steps_towards
from utils.errors import ConfigError


def tried(*scores: float | None, allowed: float = 0.01, dense: float = 0.62, ended: str = "") -> ScoreDrop:
    """Rounds with these scores."""
    drop = ScoreDrop(metric="AP", allowed=allowed, dense=dense, ended=ended)
    for number, score in enumerate(scores, 1):
        drop = drop.after(f"ms={10 - number}", score)
    return drop


@pytest.mark.parametrize(
    ("scores", "taken", "is_over"),
    [
        ((), None, False),
        ((0.619,), 1, False),
        ((0.61,), 1, False),  # exactly what is allowed, though .62 - .61 > .01 in floating point
        ((0.6099,), None, True),
        ((0.63, 0.64), 2, False),  # better than dense
        ((0.619, 0.612, 0.6), 2, True),
        ((0.61, None), 1, True),
        ((0.61, math.nan), 1, True),
        ((None,), None, True),
    ],
)
def test_last_round_within_the_drop_is_taken(
    scores: tuple[float | None, ...], taken: int | None, is_over: bool
) -> None:
    drop = tried(*scores)
    assert (drop.taken and drop.taken.number, drop.is_over) == (taken, is_over)


def test_no_drop_at_all_may_be_allowed() -> None:
    assert tried(0.62, allowed=0.0).taken is not None
    assert tried(0.6199, allowed=0.0).taken is None


def test_network_without_a_score_cannot_lose_more_than_it_had() -> None:
    drop = tried(None, dense=0.005)
    assert drop.taken is not None
    assert drop.lost(drop.rounds[0]) == 0.005
    assert drop.reason.startswith("taking round 1: mAP 0.0000 where the dense network has 0.0050")


def test_rounds_end_for_a_reason_beside_the_score() -> None:
    drop = tried(0.619, ended="--target ms=9 is reached")
    assert drop.is_over
    assert drop.taken is not None
    assert drop.reason.endswith("--max-map-drop allows 0.01; no further round: --target ms=9 is reached")


def test_reason_says_what_was_taken_and_what_the_next_round_lost() -> None:
    assert tried(0.619, 0.617, 0.601).reason == (
        "taking round 2: mAP 0.6170 where the dense network has 0.6200, --max-map-drop allows 0.01; "
        "round 3 would have lost 0.0190"
    )
    assert tried(0.57).reason == (
        "taking the dense network, mAP 0.6200: round 1 lost 0.0500 and --max-map-drop allows 0.01"
    )
    assert tried(ended="too small").reason == "taking the dense network, mAP 0.6200: too small"


@pytest.mark.parametrize("drop", [tried(), tried(0.62, None), tried(0.615, ended="--rounds 1")])
def test_decision_is_read_back(drop: ScoreDrop, tmp_path: Path) -> None:
    assert ScoreDrop.load(tmp_path) is None
    drop.save(tmp_path)
    assert ScoreDrop.load(tmp_path) == drop


@pytest.mark.parametrize("content", ["{", "[]", '{"metric": "AP"}'])
def test_damaged_decision_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / DROP_NAME).write_text(content)
    with pytest.raises(
        ConfigError, match=rf"{DROP_NAME} cannot be read: .*; remove it, and --resume .* decides again"
    ):
        ScoreDrop.load(tmp_path)


@pytest.mark.parametrize(
    ("share", "steps"), [(1.0, 1), (0.9, 1), (STEP, 1), (0.79, 2), (0.64, 2), (0.5, 4), (STEP**10, 10)]
)
def test_no_step_leaves_less_than_the_least_share(share: float, steps: int) -> None:
    assert steps_towards(share) == steps
    assert share ** (1 / steps) >= STEP - 1e-9


def test_rounded_text_of_a_target_adds_no_step() -> None:
    assert [steps_towards(parse_target(f"ms={100 * STEP**steps:.6g}%").amount) for steps in range(1, 21)] == [
        *range(1, 21)
    ]
