"""How far two runtimes give the same numbers and the same boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.boxes import box_iou

# Overlap from which a box counts as the same.
_SAME_BOX = 0.9


@dataclass(frozen=True, kw_only=True)
class HeadError:
    """Differences of one raw head, relative to its largest number.

    Attributes:
        largest: Of all values.
        mean: Over all values.
    """

    largest: float
    mean: float

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> HeadError:
        """Of two heads of one shape; infinite where one is not finite."""
        difference = (found.double() - expected.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        scale = float(expected.abs().max()) or 1.0
        return cls(largest=float(difference.max()) / scale, mean=float(difference.mean()) / scale)


@dataclass(frozen=True, kw_only=True)
class BoxAgreement:
    """Boxes of two runtimes on the same pictures.

    Attributes:
        expected: Boxes of the reference.
        found: Boxes of the other.
        matched: Pairs of one class that overlap with an IoU of at least .9.
        score_difference: Mean over the pairs.
    """

    expected: int
    found: int
    matched: int
    score_difference: float

    @property
    def share(self) -> float:
        """Boxes of both that have a partner, in [0, 1]; 1 where there are none at all."""
        total = self.expected + self.found
        return 2 * self.matched / total if total else 1.0

    @classmethod
    def of(cls, found: Sequence[Tensor], expected: Sequence[Tensor]) -> BoxAgreement:
        """Of the boxes of each picture, (n, 6) rows x1, y1, x2, y2, score, class."""
        differences = [
            float((own[i, 4] - reference[j, 4]).abs())
            for own, reference in zip(found, expected, strict=True)
            for i, j in _pairs(own, reference)
        ]
        return cls(
            expected=sum(map(len, expected)),
            found=sum(map(len, found)),
            matched=len(differences),
            score_difference=sum(differences) / max(len(differences), 1),
        )


def _pairs(found: Tensor, expected: Tensor) -> list[tuple[int, int]]:
    """Indices of boxes that are the same, each used once, greatest overlap first."""
    overlap = box_iou(found[:, :4], expected[:, :4])
    overlap = torch.where(found[:, None, 5] == expected[None, :, 5], overlap, 0)
    pairs: list[tuple[int, int]] = []
    while overlap.numel() and float(overlap.max()) >= _SAME_BOX:
        i, j = divmod(int(overlap.argmax()), overlap.shape[1])
        overlap[i, :] = overlap[:, j] = 0
        pairs.append((i, j))
    return pairs
