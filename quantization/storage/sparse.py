"""Sparse layouts of matrices, COO, CSR and CSC, with parts named as in scipy.

    dense : data, all entries, row by row
    coo   : row, col, data, sorted by row and then column
    csr   : indptr (rows + 1,), indices, data: row i has entries indptr[i] to indptr[i + 1], columns ascending
    csc   : the same by columns

Entries equal to the `fill` of their row are omitted: zero, or the zero point of an output channel's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from quantization.choices import Layout
from quantization.program.program import IntArray
from utils.errors import CheckpointError, ConfigError

Parts = dict[str, NDArray[Any]]

PARTS: Mapping[Layout, tuple[str, ...]] = {
    "dense": ("data",),
    "coo": ("row", "col", "data"),
    "csr": ("indptr", "indices", "data"),
    "csc": ("indptr", "indices", "data"),
}

_REMEDY = "the file is damaged or was edited, write it again"


def check_layout(layout: str) -> Layout:
    """Check that a string names a layout, and return it.

    Raises:
        ConfigError: There is no such layout.
    """
    for known in get_args(Layout):
        if layout == known:
            return known  # type: ignore[no-any-return]
    raise ConfigError(f"layout is {layout!r}; known: {', '.join(get_args(Layout))}")


def to_parts(matrix: NDArray[Any], *, layout: Layout, fill: NDArray[Any] | float) -> Parts:
    """Split a matrix (rows, columns) into the parts of a layout.

    Args:
        matrix: Integers or floats; -0.0 equals a fill of 0.0 and comes back as 0.0.
        layout: Layout of the parts.
        fill: Value of the omitted entries, one for all rows or one per row (rows,).

    Returns:
        The parts by name; see the head of this file.
    """
    if layout == "dense":
        return {"data": matrix.reshape(-1)}
    is_entry = matrix != _fill_of_rows(fill, len(matrix))
    if layout == "csc":
        col, row = np.nonzero(is_entry.T)
        return {"indptr": _pointers(is_entry.sum(0)), "indices": row, "data": matrix[row, col]}
    row, col = np.nonzero(is_entry)
    data = matrix[row, col]
    if layout == "coo":
        return {"row": row, "col": col, "data": data}
    return {"indptr": _pointers(is_entry.sum(1)), "indices": col, "data": data}


def to_matrix(
    parts: Mapping[str, NDArray[Any]], *, layout: Layout, shape: tuple[int, int], fill: NDArray[Any] | float
) -> NDArray[Any]:
    """Rebuild a matrix from its parts.

    Args:
        parts: Parts from `to_parts`.
        layout: Layout of the parts.
        shape: Shape of the matrix (rows, columns).
        fill: Value of the omitted entries, as in `to_parts`.

    Returns:
        The matrix, of the type of `data`.

    Raises:
        CheckpointError: The parts do not fit each other or the shape.
    """
    data = parts["data"]
    if layout == "dense":
        if len(data) != shape[0] * shape[1]:
            raise CheckpointError(f"a dense matrix of {shape} has {len(data)} entries; {_REMEDY}")
        return data.reshape(shape)
    row, col = _positions(parts, layout=layout, shape=shape)
    matrix = np.empty(shape, data.dtype)
    matrix[:] = _fill_of_rows(fill, shape[0])
    matrix[row, col] = data
    return matrix


def to_gaps(parts: Parts, *, layout: Layout) -> Parts:
    """Replace ascending indices by the number of omitted entries between them, which are small numbers."""
    name = _index_name(layout)
    if name is None:
        return parts
    indices = parts[name]
    starts = _segment_starts(parts, layout=layout)
    before = np.concatenate(([-1], indices[:-1]))[: len(indices)]
    before[starts] = -1
    return {**parts, name: indices - before - 1}


def from_gaps(parts: Parts, *, layout: Layout, shape: tuple[int, int]) -> Parts:
    """Undo `to_gaps`.

    Raises:
        CheckpointError: The index pointers do not fit a matrix of that shape.
    """
    name = _index_name(layout)
    if name is None:
        return parts
    gaps = parts[name]
    if layout == "coo":
        _check_lengths(parts, ("row", "col"))
    else:
        _check_pointers(parts["indptr"], num_segments=shape[layout == "csc"], num_entries=len(gaps))
    starts = _segment_starts(parts, layout=layout)
    steps = np.cumsum(gaps + 1)
    before = (steps - gaps - 1)[starts]
    return {**parts, name: steps - 1 - np.repeat(before, np.diff(starts, append=len(gaps)))}


def _index_name(layout: Layout) -> str | None:
    return {"dense": None, "coo": "col", "csr": "indices", "csc": "indices"}[layout]


def _segment_starts(parts: Mapping[str, NDArray[Any]], *, layout: Layout) -> IntArray:
    """Return the position of the first entry of each row (or column, in CSC) that has entries."""
    if layout == "coo":
        row = parts["row"]
        return np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1]))[: len(row)])
    indptr = parts["indptr"]
    starts: IntArray = indptr[:-1][np.diff(indptr) > 0]
    return starts


def _pointers(counts: NDArray[Any]) -> IntArray:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))


def _fill_of_rows(fill: NDArray[Any] | float, num_rows: int) -> NDArray[Any]:
    return np.broadcast_to(fill, (num_rows,))[:, None]  # (rows, 1)


def _positions(
    parts: Mapping[str, NDArray[Any]], *, layout: Layout, shape: tuple[int, int]
) -> tuple[IntArray, IntArray]:
    """Return the row and column of every entry, checked."""
    if layout == "coo":
        _check_lengths(parts, ("row", "col", "data"))
        row, col = parts["row"], parts["col"]
        _check_positions(row, col, shape=shape)
        return row, col
    _check_lengths(parts, ("indices", "data"))
    indptr, indices = parts["indptr"], parts["indices"]
    segments, length = shape if layout == "csr" else shape[::-1]
    _check_pointers(indptr, num_segments=segments, num_entries=len(indices))
    segment = np.repeat(np.arange(segments), np.diff(indptr))
    _check_positions(segment, indices, shape=(segments, length))
    return (segment, indices) if layout == "csr" else (indices, segment)


def _check_lengths(parts: Mapping[str, NDArray[Any]], names: tuple[str, ...]) -> None:
    lengths = {name: len(parts[name]) for name in names}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{count} of {name}" for name, count in lengths.items())
        raise CheckpointError(f"a sparse matrix has {found}; {_REMEDY}")


def _check_pointers(indptr: IntArray, *, num_segments: int, num_entries: int) -> None:
    if len(indptr) != num_segments + 1:
        raise CheckpointError(f"{len(indptr)} index pointers, expected {num_segments + 1}; {_REMEDY}")
    if indptr[0] != 0 or indptr[-1] != num_entries:
        raise CheckpointError(
            f"index pointers range from {indptr[0]} to {indptr[-1]}, expected 0 to {num_entries}; {_REMEDY}"
        )
    if (falls := np.flatnonzero(np.diff(indptr) < 0)).size:
        at = int(falls[0])
        raise CheckpointError(
            f"index pointers are not monotone: {indptr[at]} at {at} is followed by {indptr[at + 1]}; {_REMEDY}"
        )


def _check_positions(major: IntArray, minor: IntArray, *, shape: tuple[int, int]) -> None:
    """Check that indices are in range and ascend: by the first index, and within it strictly by the second."""
    for indices, size in ((major, shape[0]), (minor, shape[1])):
        if (outside := indices[(indices < 0) | (indices >= size)]).size:
            raise CheckpointError(f"index {outside[0]} of a sparse matrix is outside 0 to {size - 1}; {_REMEDY}")
    if (np.diff(major * shape[1] + minor) <= 0).any():
        raise CheckpointError(f"indices of a sparse matrix do not ascend; {_REMEDY}")
