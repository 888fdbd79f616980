"""Assigns boxes to predictions, as YOLOv5 v5.0 does.

This runs on the host, on the loader's targets: the number of matches depends on the data, and computing it on a GPU
would make the host wait in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.device import send

# A box is also assigned to each neighbouring cell that is less than half a cell from its centre.
_REACH = 0.5
# Steps (x, y) to the cell itself, then to its left, upper, right and lower neighbour.
_STEPS = torch.tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])


@dataclass(frozen=True, kw_only=True)
class LevelTargets:
    """The M matches of one head.

    Attributes:
        image, anchor, row, column: Indices (M,) int64 of the prediction.
        boxes: Boxes (M, 4): centre relative to the cell's upper left corner, width and height, in cells.
        classes: Classes (M,) int64.
    """

    image: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor
    boxes: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.image)

    def place_in(self, head: Tensor) -> Tensor:
        """Return the rows (M,) of the predictions in a head reshaped to (B * A * H * W, outputs)."""
        _, anchors, height, width, _ = head.shape
        return ((self.image * anchors + self.anchor) * height + self.row) * width + self.column

    def to(self, device: torch.device) -> LevelTargets:
        """Copy all tensors to `device` without waiting for it."""
        return LevelTargets(**{name: send(value, device) for name, value in vars(self).items()})


def assign_targets(
    targets: Tensor, *, grids: Sequence[tuple[int, int]], anchors: Tensor, anchor_t: float
) -> list[LevelTargets]:
    """Match boxes with anchors by shape, and with up to three cells by position.

    An anchor matches if both of its sides differ from the box's by less than the factor `anchor_t`. It then predicts
    the box in the cell of the box's centre and, where they exist, in the nearer horizontal and vertical neighbours.

    Args:
        targets: Rows (N, 6) of image, class, cx, cy, w, h; coordinates normalised to [0, 1].
        grids: Height and width of each head, in cells.
        anchors: Anchors (levels, A, 2), in cells of their own head.
        anchor_t: Upper limit of the ratio of sides.

    Returns:
        Matches of each head.
    """
    return [
        _assign_level(targets, grid=grid, anchors=level_anchors, anchor_t=anchor_t)
        for grid, level_anchors in zip(grids, anchors, strict=True)
    ]


def _assign_level(targets: Tensor, *, grid: tuple[int, int], anchors: Tensor, anchor_t: float) -> LevelTargets:
    height, width = grid
    size = torch.tensor([width, height], dtype=targets.dtype)
    centre, wh = targets[:, 2:4] * size, targets[:, 4:6] * size

    ratio = wh[None] / anchors[:, None]  # (A, N, 2)
    anchor, box = (torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t).nonzero(as_tuple=True)
    centre, wh, labels = centre[box], wh[box], targets[box, :2].long()

    # Ordered by steps, then anchors, then boxes: where two boxes match one prediction, the last one wins.
    step, match = _near_cells(centre, size).nonzero(as_tuple=True)
    cell = (centre[match] - _STEPS[step] * -_REACH).long()
    column, row = cell[:, 0].clamp(0, width - 1), cell[:, 1].clamp(0, height - 1)
    offset = centre[match] - torch.stack((column, row), 1)
    return LevelTargets(
        image=labels[match, 0],
        anchor=anchor[match],
        row=row,
        column=column,
        boxes=torch.cat((offset, wh[match]), 1),
        classes=labels[match, 1],
    )


def _near_cells(centre: Tensor, size: Tensor) -> Tensor:
    """Return (5, M) bool: which of the five steps lead to a cell that predicts the box centred at `centre` (M, 2)."""
    mirrored = size - centre
    left_up = (centre % 1 < _REACH) & (centre > 1)
    right_down = (mirrored % 1 < _REACH) & (mirrored > 1)
    here = torch.ones(len(centre), dtype=torch.bool)
    return torch.stack((here, left_up[:, 0], left_up[:, 1], right_down[:, 0], right_down[:, 1]))
