"""Matching of the boxes of two runtimes."""

from __future__ import annotations

from torch import Tensor

from utils.boxes.boxes import box_iou

# Two boxes count as the same from this IoU on, or if all corners are this close in pixels: a sliver three pixels
# wide loses a third of its area with one of them.
_SAME_IOU = 0.9
_SAME_PIXELS = 1.0


def same_boxes(first: Tensor, second: Tensor) -> Tensor:
    """Check for every pair of boxes whether they count as the same.

    Args:
        first: Rows (n, 6) of x1, y1, x2, y2, score, class, in pixels.
        second: Rows (m, 6), in the same format.

    Returns:
        (n, m) bool: True for the same class and an IoU of at least 0.9 or corners within one pixel.
    """
    is_near = (box_iou(first[:, :4], second[:, :4]) >= _SAME_IOU) | (_distance(first, second) <= _SAME_PIXELS)
    return is_near & (first[:, None, 5] == second[None, :, 5])


def matched_pairs(found: Tensor, expected: Tensor) -> list[tuple[int, int]]:
    """Pair as many equal boxes as possible, each used at most once.

    The nearest boxes choose first, ties in distance go to the most similar score. A box whose partner is taken moves
    the other box on to a different partner if it has one (augmenting paths).

    Args:
        found: Rows (n, 6) of boxes.
        expected: Rows (m, 6) of boxes.

    Returns:
        Index pairs (found, expected).
    """
    cost = _distance(found, expected) + (found[:, None, 4] - expected[None, :, 4]).abs()
    is_same = same_boxes(found, expected)
    choices = [
        sorted(partners.nonzero().flatten().tolist(), key=own.__getitem__)
        for partners, own in zip(is_same, cost.tolist(), strict=True)
    ]
    owner: dict[int, int] = {}

    def is_placed(i: int, tried: set[int]) -> bool:
        for j in choices[i]:
            if j in tried:
                continue
            tried.add(j)
            if j not in owner or is_placed(owner[j], tried):
                owner[j] = i
                return True
        return False

    with_choice = [i for i, partners in enumerate(choices) if partners]
    for i in sorted(with_choice, key=lambda i: float(cost[i, choices[i][0]])):
        is_placed(i, set())
    return sorted((i, j) for j, i in owner.items())


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the largest difference of any coordinate of each pair of boxes, (n, m), in pixels."""
    return (first[:, None, :4] - second[None, :, :4]).abs().amax(-1)
