"""Scales, zero points and rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantization.program.program import Affine
from quantization.ranges.affine import affine_of_range, dequantise, fake_quantise, quantise, within


def test_scale_and_zero_point_of_a_range() -> None:
    # 255 steps of 0.1 from -5.5: zero is the integer 55.
    affine = affine_of_range(-5.5, 20.0, bits=8, symmetric=False)
    assert affine == Affine(scale=pytest.approx(0.1), zero_point=55, low=0, high=255)


def test_symmetric_range_is_as_wide_on_both_sides() -> None:
    affine = affine_of_range(-6.35, 12.7, bits=8, symmetric=True)
    assert affine == Affine(scale=pytest.approx(0.1), zero_point=0, low=-127, high=127)


def test_symmetric_range_without_negative_numbers_wastes_no_integers() -> None:
    affine = affine_of_range(0.0, 1.5, bits=4, symmetric=True)
    assert affine == Affine(scale=pytest.approx(0.1), zero_point=0, low=0, high=15)


def test_range_is_widened_to_hold_zero() -> None:
    assert affine_of_range(2.0, 3.0, bits=2, symmetric=False) == Affine(scale=1.0, zero_point=0, low=0, high=3)


def test_range_of_zeros_gets_scale_one() -> None:
    affine = affine_of_range(0.0, 0.0, bits=8, symmetric=False)
    assert affine.scale == 1.0
    assert affine.zero_point == 0


def test_halves_round_up_and_ends_clamp() -> None:
    affine = Affine(scale=1.0, zero_point=2, low=0, high=7)
    x = torch.tensor([-9.0, -1.5, -0.5, 0.5, 1.49, 9.0])
    assert quantise(x, affine).tolist() == [0, 1, 2, 3, 3, 7]
    assert dequantise(torch.tensor([0, 2, 7]), affine).tolist() == [-2.0, 0.0, 5.0]


def test_clamp_of_real_numbers_is_one_of_integers() -> None:
    affine = affine_of_range(-6.0, 6.0, bits=4, symmetric=True)  # scale 6 / 7
    assert (within(affine, 0.0, float("inf")).low, within(affine, -1.0, 3.0).high) == (0, 4)


def test_gradient_passes_inside_the_range_only() -> None:
    affine = Affine(scale=0.5, zero_point=0, low=-2, high=2)
    x = torch.tensor([-3.0, -0.7, 0.2, 0.9, 5.0], requires_grad=True)
    fake_quantise(x, affine).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@given(low=st.floats(-1e6, 0), high=st.floats(0, 1e6), bits=st.integers(2, 16), symmetric=st.booleans())
def test_zero_is_exact_and_the_range_is_held(low: float, high: float, bits: int, symmetric: bool) -> None:
    affine = affine_of_range(low, high, bits=bits, symmetric=symmetric)
    assert affine.low <= affine.zero_point <= affine.high
    assert affine.high - affine.low < 2**bits
    ends = torch.tensor([low, 0.0, high], dtype=torch.float64)
    back = fake_quantise(ends, affine)
    assert back[1] == 0
    assert ((back - ends).abs() <= affine.scale * 0.51).all()
