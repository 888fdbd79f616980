"""How far two runtimes give the same numbers and the same boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploy.verification.matching import matched_pairs
from deploy.verification.ties import Choice, count_ties


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
    """Boxes of two runtimes on the same images.

    Attributes:
        expected: Number of boxes of the reference.
        found: Number of boxes of the other.
        matched: Number of pairs: one class, and an IoU of at least .9 or corners within one pixel.
        tied: Number of boxes of both without partner, because a choice between nearly equal numbers fell the other
            way (see `deploy.verification.ties`).
        score_difference: Mean over the pairs.
    """

    expected: int
    found: int
    matched: int
    tied: int = 0
    score_difference: float

    @property
    def share(self) -> float:
        """Boxes of both that have a partner among those that are no ties, in [0, 1]; 1 where there are none."""
        total = self.expected + self.found - self.tied
        return 2 * self.matched / total if total else 1.0

    @classmethod
    def of(
        cls, found: Sequence[Tensor], expected: Sequence[Tensor], *, choices: Sequence[Choice] = ()
    ) -> BoxAgreement:
        """Compare the boxes of each image.

        Args:
            found: (n, 6) rows x1, y1, x2, y2, score, class.
            expected: The same of the reference.
            choices: What they were chosen from; without it no box is a tie.
        """
        pairs = [matched_pairs(own, reference) for own, reference in zip(found, expected, strict=True)]
        differences = [
            float((own[i, 4] - reference[j, 4]).abs())
            for own, reference, matched in zip(found, expected, pairs, strict=True)
            for i, j in matched
        ]
        tied = sum(map(count_ties, found, expected, pairs, choices)) if choices else 0
        return cls(
            expected=sum(map(len, expected)),
            found=sum(map(len, found)),
            matched=len(differences),
            tied=tied,
            score_difference=sum(differences) / max(len(differences), 1),
        )
