"""Which prediction answers for which box (YOLOv5 v5.0).

Runs on the host, on the targets as they come from the loader: the number of matches depends on the data, and
finding it on a GPU would make the host wait in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.device import send

# A box also belongs to the neighbour cell that its centre is closer to than half a cell.
_REACH = 0.5
# Step to the cell itself, then to its left, upper, right and lower neighbour.
_STEPS = torch.tensor([[0, 0], [-1, 0], [0, -1], [1, 0], [0, 1]])


@dataclass(frozen=True, kw_only=True)
class LevelTargets:
    """The M matches of one head.

    Attributes:
        image, anchor, row, column: (M,) int64, where the prediction lies.
        boxes: (M, 4) centre relative to the cell's corner, width and height, in cells.
        classes: (M,) int64.
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
        """(M,) rows of the predictions in a head (B, A, H, W, outputs) reshaped to (B * A * H * W, outputs)."""
        _, anchors, height, width, _ = head.shape
        return ((self.image * anchors + self.anchor) * height + self.row) * width + self.column

    def to(self, device: torch.device) -> LevelTargets:
        """Copy to `device` without waiting for it."""
        return LevelTargets(**{name: send(value, device) for name, value in vars(self).items()})


def assign_targets(
    targets: Tensor, *, grids: Sequence[tuple[int, int]], anchors: Tensor, anchor_t: float
) -> list[LevelTargets]:
    """Match boxes with anchors by shape, and with up to three cells by place.

    An anchor matches when neither side differs by more than the factor `anchor_t`. A match holds for the cell of
    the box's centre and for the nearest cell beside and above or below it, where those exist.

    Args:
        targets: (N, 6) image, class, cx, cy, w, h normalised to [0, 1].
        grids: Height and width of each head, in cells.
        anchors: (levels, A, 2) in cells of their own head.
        anchor_t: Largest ratio of sides.

    Returns:
        One LevelTargets per head.
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

    # Order of steps first, then anchors, then boxes: where two boxes meet in one cell, the last one stays.
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
    """(5, M) bool: which of the five steps lead to a cell that answers for a box centred at `centre` (M, 2)."""
    mirrored = size - centre
    left_up = (centre % 1 < _REACH) & (centre > 1)
    right_down = (mirrored % 1 < _REACH) & (mirrored > 1)
    here = torch.ones(len(centre), dtype=torch.bool)
    return torch.stack((here, left_up[:, 0], left_up[:, 1], right_down[:, 0], right_down[:, 1]))
