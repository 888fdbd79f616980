"""Anchor sizes: in pixels in specs and YAMLs, in cells in the head's buffer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models.layer_table import freeze
from utils.errors import ConfigError

# One row w, h, w, h, ... per head, in pixels.
Anchors = tuple[tuple[float, ...], ...]


def anchor_rows(given: Any, *, strides: tuple[int, ...]) -> Anchors:
    """Return anchors as rows of pixels; a bare count gives squares on a geometric ladder from 2 to 4 strides.

    The ladder continues from head to head, as their strides double; autoanchor refines it before training.
    """
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return tuple(
            tuple(round(stride * 2 * 2 ** (i // 2 / given), 2) for i in range(2 * given)) for stride in strides
        )
    rows = freeze(given)
    check_anchors(rows, num_heads=len(strides))
    return tuple(tuple(float(value) for value in row) for row in rows)


def check_anchors(anchors: Any, *, num_heads: int) -> None:
    """Check that anchors are one row of positive pixel sizes per head.

    Raises:
        ConfigError: The anchors have another form.
    """
    if not isinstance(anchors, tuple) or not all(isinstance(row, tuple) and row for row in anchors):
        raise ConfigError(f"anchors are {anchors!r}, expected one row w,h,w,h,... per head, or their count")
    if len(anchors) != num_heads:
        raise ConfigError(f"anchors have {len(anchors)} rows; Detect reads {num_heads} layers")
    if len({len(row) for row in anchors}) > 1 or len(anchors[0]) % 2:
        raise ConfigError("anchors: rows of different length, expected the same number of w,h pairs in each")
    for value in (value for row in anchors for value in row):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"anchors: got {value!r}, expected sizes in pixels, above 0")


def anchors_in_cells(anchors: Anchors, strides: Sequence[int]) -> Tensor:
    """Convert rows of pixels to (heads, A, 2) float32, in cells of each head."""
    cells = [[size / stride for size in row] for row, stride in zip(anchors, strides, strict=True)]
    return torch.tensor(cells, dtype=torch.float32).view(len(anchors), -1, 2)
