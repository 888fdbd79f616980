"""Which boxes of two runtimes are the same boxes."""

from __future__ import annotations

from torch import Tensor

from utils.boxes import box_iou

# Overlap from which a box counts as the same, and how far all its corners may lie off where the overlap is less: a
# sliver of three pixels loses a third of its area with one of them.
_SAME_IOU = 0.9
_SAME_PIXELS = 1.0


def same_boxes(first: Tensor, second: Tensor) -> Tensor:
    """Compare every pair of boxes.

    Args:
        first: (n, 6) rows x1, y1, x2, y2, score, class, in pixels.
        second: (m, 6).

    Returns:
        (n, m) bool: one class, and an IoU of at least .9 or corners within one pixel.
    """
    is_near = (box_iou(first[:, :4], second[:, :4]) >= _SAME_IOU) | (_distance(first, second) <= _SAME_PIXELS)
    return is_near & (first[:, None, 5] == second[None, :, 5])


def matched_pairs(found: Tensor, expected: Tensor) -> list[tuple[int, int]]:
    """Pair as many same boxes as can be, each used once.

    The nearest choose first, then the most alike in score; one that finds its partner taken moves the other on to
    another partner where that has one (augmenting paths).

    Args:
        found: (n, 6) rows.
        expected: (m, 6) rows.

    Returns:
        Indices (found, expected) of each pair.
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
    """(n, m): how far the farthest coordinate lies off, in pixels."""
    return (first[:, None, :4] - second[None, :, :4]).abs().amax(-1)
