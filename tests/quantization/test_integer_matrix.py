"""Exact products of integers of any width."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantization.execution import matrix as integer_matrix
from quantization.execution.matrix import ConstantMatrix, digits, num_digits


@pytest.mark.parametrize(
    ("values", "count"),
    [([-128, 127], 1), ([128], 2), ([-32896, 32639], 2), ([32640], 3), ([-129], 2), ([-65535], 3)],
)
def test_digits_give_the_number_again(values: list[int], count: int) -> None:
    integers = torch.tensor(values)
    assert num_digits(integers) == count
    parts = digits(integers, count)
    assert all(part.dtype == torch.int8 for part in parts)
    assert sum(part.long() * 256**place for place, part in enumerate(parts)).tolist() == values


@given(
    left=st.integers(0, 17), right=st.integers(0, 15), shape=st.tuples(*[st.integers(1, 20)] * 3), seed=st.integers(0)
)
def test_product_is_exact_for_every_width(left: int, right: int, shape: tuple[int, int, int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**31)
    rows, inner, columns = shape
    matrix = torch.randint(-(2**left), 2**left, (rows, inner), generator=generator)
    other = torch.randint(-(2**right), 2**right, (inner, columns), generator=generator)
    product = ConstantMatrix(matrix).times(digits(other, num_digits(other)))
    assert torch.equal(product.long(), matrix @ other)


def test_without_fast_products_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_matrix, "_int_mm_is_exact", lambda: False)
    matrix, other = torch.tensor([[300, -2]]), torch.tensor([[1000], [7]])
    assert ConstantMatrix(matrix).times(digits(other, 2)).tolist() == [[300 * 1000 - 14]]
