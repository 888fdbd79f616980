"""COO, CSR and CSC: hand-computed, exact, and strict about what fits no matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from quantization.choices import Layout
from quantization.storage.sparse import check_layout, from_gaps, to_gaps, to_matrix, to_parts
from utils.errors import CheckpointError, ConfigError

SPARSE = ("coo", "csr", "csc")
LAYOUTS = ("dense", *SPARSE)

# 5 . . 7
# . . . .
# . 3 9 4
MATRIX = np.array([[5, 0, 0, 7], [0, 0, 0, 0], [0, 3, 9, 4]])

# By hand.
PARTS: dict[str, dict[str, list[int]]] = {
    "coo": {"row": [0, 0, 2, 2, 2], "col": [0, 3, 1, 2, 3], "data": [5, 7, 3, 9, 4]},
    "csr": {"indptr": [0, 2, 2, 5], "indices": [0, 3, 1, 2, 3], "data": [5, 7, 3, 9, 4]},
    "csc": {"indptr": [0, 1, 2, 3, 5], "indices": [0, 2, 2, 0, 2], "data": [5, 3, 9, 7, 4]},
}
# How many entries are left out before each, within its row (column in CSC).
GAPS = {"coo": [0, 2, 1, 0, 0], "csr": [0, 2, 1, 0, 0], "csc": [0, 2, 2, 0, 1]}


def parts_of(layout: str, **changed: list[int]) -> dict[str, Any]:
    return {name: np.array(values, np.int64) for name, values in {**PARTS[layout], **changed}.items()}


@pytest.mark.parametrize("layout", SPARSE)
def test_parts_of_a_three_by_four_matrix_are_those_computed_by_hand(layout: Layout) -> None:
    found = to_parts(MATRIX, layout=layout, fill=0)
    assert {name: values.tolist() for name, values in found.items()} == PARTS[layout]


@pytest.mark.parametrize("layout", SPARSE)
def test_parts_by_hand_give_the_matrix(layout: Layout) -> None:
    found = to_matrix(parts_of(layout), layout=layout, shape=(3, 4), fill=0)
    assert found.tolist() == MATRIX.tolist()


@pytest.mark.parametrize("layout", SPARSE)
def test_gaps_count_what_is_left_out(layout: Layout) -> None:
    parts = to_gaps(parts_of(layout), layout=layout)
    assert parts["col" if layout == "coo" else "indices"].tolist() == GAPS[layout]


def test_fill_of_each_row_is_left_out() -> None:
    found = to_parts(np.array([[1, 1, 2], [4, 3, 3]]), layout="csr", fill=np.array([1, 3]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "indptr": [0, 1, 2],
        "indices": [2, 0],
        "data": [2, 4],
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@given(
    matrix=arrays(np.int64, array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.integers(-2, 2)),
    fill=st.integers(-2, 2),
)
def test_any_matrix_comes_back(layout: Layout, matrix: Any, fill: int) -> None:
    fills = np.roll(np.array([fill, 0, 1]), 1)[np.arange(len(matrix)) % 3]
    gaps = to_gaps(to_parts(matrix, layout=layout, fill=fills), layout=layout)
    parts = from_gaps(gaps, layout=layout, shape=matrix.shape)
    np.testing.assert_array_equal(to_matrix(parts, layout=layout, shape=matrix.shape, fill=fills), matrix)


@pytest.mark.parametrize("layout", SPARSE)
def test_floats_keep_their_type_and_bits(layout: Layout) -> None:
    matrix = np.array([[0.1, 0.0], [0.0, -3e-30]], np.float32)
    parts = to_parts(matrix, layout=layout, fill=0.0)
    assert len(parts["data"]) == 2
    np.testing.assert_array_equal(to_matrix(parts, layout=layout, shape=(2, 2), fill=0.0), matrix, strict=True)


@pytest.mark.parametrize(
    ("layout", "changed", "words"),
    [
        ("csr", {"indptr": [0, 3, 2, 5]}, "not monotone: 3 at 1 is followed by 2"),
        ("csr", {"indptr": [1, 2, 2, 5]}, "range from 1 to 5, expected 0 to 5"),
        ("csr", {"indptr": [0, 2, 2, 4]}, "range from 0 to 4, expected 0 to 5"),
        ("csr", {"indptr": [0, 2, 5]}, "3 index pointers, expected 4"),
        ("csr", {"indices": [0, 4, 1, 2, 3]}, "index 4 of a sparse matrix is outside 0 to 3"),
        ("csr", {"indices": [0, 3, -1, 2, 3]}, "index -1"),
        ("csr", {"indices": [3, 0, 1, 2, 3]}, "do not ascend"),
        ("csr", {"indices": [0, 3, 1, 1, 3]}, "do not ascend"),
        ("csr", {"data": [5, 7, 3, 9]}, "5 of indices, 4 of data"),
        ("csc", {"indices": [0, 2, 3, 0, 2]}, "index 3 of a sparse matrix is outside 0 to 2"),
        ("csc", {"indptr": [0, 1, 3, 2, 5]}, "not monotone: 3 at 2 is followed by 2"),
        ("coo", {"row": [0, 0, 3, 3, 3]}, "index 3 of a sparse matrix is outside 0 to 2"),
        ("coo", {"row": [2, 0, 0, 2, 2]}, "do not ascend"),
        ("coo", {"col": [0, 3, 1, 2]}, "5 of row, 4 of col, 5 of data"),
    ],
)
def test_parts_that_fit_no_matrix_are_refused(layout: Layout, changed: dict[str, list[int]], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        to_matrix(parts_of(layout, **changed), layout=layout, shape=(3, 4), fill=0)
    assert "write it again" in str(caught.value)


@pytest.mark.parametrize("row", [[-1, 0, 2, 2, 2], [-1, -1, -1, -1, -1]])
def test_gaps_of_rows_outside_the_matrix_are_refused(row: list[int]) -> None:
    parts = from_gaps(parts_of("coo", row=row), layout="coo", shape=(3, 4))
    with pytest.raises(CheckpointError, match="index -1 of a sparse matrix is outside 0 to 2"):
        to_matrix(parts, layout="coo", shape=(3, 4), fill=0)


@pytest.mark.parametrize("pointers", [[0, 3, 2, 5], [0, 2, 2, 9], [0, 2, 5]])
def test_gaps_with_pointers_that_fit_no_matrix_are_refused(pointers: list[int]) -> None:
    with pytest.raises(CheckpointError, match="pointers"):
        from_gaps(parts_of("csr", indptr=pointers), layout="csr", shape=(3, 4))


def test_dense_matrix_of_another_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="has 5 entries"):
        to_matrix({"data": np.arange(5)}, layout="dense", shape=(2, 3), fill=0)


def test_unknown_layout_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'bsr'; known: dense, coo, csr, csc"):
        check_layout("bsr")
