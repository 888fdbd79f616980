"""Rounding of widths: by hand, then for all of them."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pruning.selection.rounding import Direction, Rounding
from utils.errors import ConfigError

roundings = st.builds(
    Rounding, unit=st.sampled_from([0, 1, 4, 8, 16]), direction=st.sampled_from(get_args(Direction))
)
totals = st.integers(1, 300)


@pytest.mark.parametrize(
    ("text", "direction", "kept", "width"),
    [
        ("pow2", "nearest", 24, 32),  # as near to 16: the larger one
        ("pow2", "nearest", 23, 16),
        ("pow2", "up", 17, 32),
        ("pow2", "down", 31, 16),
        ("pow2", "up", 33, 64),
        ("8", "nearest", 12, 16),
        ("8", "nearest", 11, 8),
        ("8", "up", 9, 16),
        ("8", "down", 15, 8),
        ("8", "down", 3, 8),  # no smaller width is allowed
        ("none", "nearest", 23, 23),
        ("pow2", "nearest", 0, 1),
        ("none", "down", 0, 1),
    ],
)
def test_widths_of_a_layer_of_64(text: str, direction: Direction, kept: int, width: int) -> None:
    assert Rounding.parse(text, direction=direction).apply(kept, total=64) == width


def test_layer_stays_as_it_is_where_its_own_width_is_nearest() -> None:
    rounding = Rounding.parse("pow2")
    assert rounding.apply(22, total=24) == 24
    assert rounding.apply(19, total=24) == 16
    assert Rounding.parse("16").apply(5, total=12) == 12


def test_least_width_counts_before_rounding_down() -> None:
    assert Rounding.parse("pow2", direction="down").apply(31, total=64, least=20) == 32
    assert Rounding.parse("none").apply(3, total=64, least=20) == 20
    assert Rounding.parse("pow2").apply(3, total=16, least=20) == 16


@pytest.mark.parametrize("text", ["pow3", "0", "-8", "2.5", "", "8x", "²"])
def test_text_that_is_no_rounding_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--round {text}: expected pow2, none or a number such as 8"):
        Rounding.parse(text)


@given(roundings, totals, st.data())
def test_width_is_at_least_one_and_never_more_than_there_is(
    rounding: Rounding, total: int, data: st.DataObject
) -> None:
    least = data.draw(st.integers(1, 40))
    width = rounding.apply(data.draw(st.integers(0, total)), total=total, least=least)
    assert min(least, total) <= width <= total


@given(roundings, totals)
def test_allowed_widths_stay_as_they_are(rounding: Rounding, total: int) -> None:
    assert [rounding.apply(width, total=total) for width in rounding.widths(total)] == [*rounding.widths(total)]


@given(roundings, totals, st.data())
def test_rounded_widths_are_allowed_or_the_whole_layer(rounding: Rounding, total: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, total))
    assert rounding.apply(kept, total=total) in {*rounding.widths(total), total}


@given(roundings, totals, st.data())
def test_more_kept_is_never_a_smaller_width(rounding: Rounding, total: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, total - 1))
    assert rounding.apply(kept, total=total) <= rounding.apply(kept + 1, total=total)


@given(st.sampled_from([0, 1, 4, 8]), totals, st.data())
def test_nearest_lies_between_down_and_up(unit: int, total: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, total))
    assume(kept >= min(Rounding(unit=unit).widths(total)))
    down, nearest, up = (
        Rounding(unit=unit, direction=direction).apply(kept, total=total) for direction in ("down", "nearest", "up")
    )
    assert down <= kept <= up or kept == total
    assert nearest in (down, up)
