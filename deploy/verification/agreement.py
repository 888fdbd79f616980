"""Agreement of two runtimes on the same images, in raw heads and in boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploy.verification.matching import matched_pairs
from deploy.verification.ties import Choice, count_ties


@dataclass(frozen=True, kw_only=True)
class HeadError:
    """Absolute errors of one raw head, relative to its largest magnitude.

    Attributes:
        largest: Maximum over all values.
        mean: Mean over all values.
    """

    largest: float
    mean: float

    @classmethod
    def of(cls, found: Tensor, expected: Tensor) -> HeadError:
        """Compare two heads of the same shape; an error is infinite where either value is not finite."""
        difference = (found.double() - expected.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf)
        scale = float(expected.abs().max()) or 1.0
        return cls(largest=float(difference.max()) / scale, mean=float(difference.mean()) / scale)


@dataclass(frozen=True, kw_only=True)
class BoxAgreement:
    """Agreement of the boxes of two runtimes on the same images.

    Attributes:
        expected: Number of boxes of the reference.
        found: Number of boxes of the other runtime.
        matched: Number of pairs: same class, and an IoU of at least 0.9 or corners within one pixel.
        tied: Number of boxes of both that have no partner because a choice between nearly equal values fell the
            other way (see `deploy.verification.ties`).
        score_difference: Mean absolute difference of scores over the pairs.
    """

    expected: int
    found: int
    matched: int
    tied: int = 0
    score_difference: float

    @property
    def share(self) -> float:
        """Share of boxes, ties left out, that have a partner, in [0, 1]; 1 if there are no boxes."""
        total = self.expected + self.found - self.tied
        return 2 * self.matched / total if total else 1.0

    @classmethod
    def of(
        cls, found: Sequence[Tensor], expected: Sequence[Tensor], *, choices: Sequence[Choice] = ()
    ) -> BoxAgreement:
        """Compare the boxes of each image.

        Args:
            found: Rows (n, 6) of x1, y1, x2, y2, score, class for each image.
            expected: Rows (m, 6) of the reference.
            choices: Candidates of NMS for each image; without them no box counts as a tie.
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
