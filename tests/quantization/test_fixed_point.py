"""Real factors as integer multiplication and shift."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantization.ranges.affine import LARGEST_MULTIPLIER, common_fixed_point, fixed_point


def test_power_of_two_is_exact() -> None:
    multiplier, shift = fixed_point(0.25, bound=1000)
    assert multiplier == 2 ** (shift - 2)
    assert multiplier == 2**30


def test_large_sums_get_fewer_bits() -> None:
    multiplier, _ = fixed_point(0.3, bound=2**40)
    assert 2**20 < multiplier < 2**22


def test_factor_of_nothing_is_zero() -> None:
    assert fixed_point(1e-30, bound=255)[0] == 0


def test_factors_of_a_sum_share_their_shift() -> None:
    factors, shift = common_fixed_point([1.0, 0.5], bounds=[255, 255])
    assert factors[0] == 2 * factors[1] == 2**shift


def test_huge_factor_saturates() -> None:
    assert fixed_point(1e30, bound=255) == (LARGEST_MULTIPLIER, 1)


@given(real=st.floats(1e-6, 1e4), bound=st.integers(1, 2**36))
def test_nothing_overflows_and_the_factor_is_close(real: float, bound: int) -> None:
    multiplier, shift = fixed_point(real, bound=bound)
    assert 0 <= multiplier < 2**31
    assert 1 <= shift <= 62
    assert bound * multiplier + 2 ** (shift - 1) < 2**63
    if bound * real < 2**30:
        assert multiplier / 2**shift == pytest.approx(real, rel=2e-4, abs=2.0**-40)
