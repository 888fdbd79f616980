"""Ties: boxes that only one of two runtimes keeps because a choice between nearly equal values fell the other way.

Non-maximum suppression keeps the better of two overlapping boxes. If their scores differ by less than the runtimes
do, each runtime may keep a different one, and suppress other boxes with it. That is no fault of a runtime, so these
boxes are counted separately. A box is a tie only if the other runtime had it as a candidate, with the same class,
position and score, and dropped it for one of these reasons:

* threshold: its score there does not exceed the minimum score;
* class: another class of the same candidate has nearly the same score;
* maximum number of boxes per image: the last box kept is hardly better;
* suppression: each box that suppresses it is hardly better, or hardly overlaps enough, or is paired with a box that
  does not suppress it here, or is itself kept there only by a tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploy.verification.matching import same_boxes
from utils.boxes.boxes import box_iou, cxcywh_to_xyxy

# An overlap this close to the threshold is always a tie: NMS offsets the boxes of each class, to coordinates where
# float32 has steps of thousandths of a pixel.
_OVERLAP_TIE = 0.01


@dataclass(frozen=True, kw_only=True)
class TieRule:
    """Thresholds of NMS, and the differences that count as nearly equal.

    Attributes:
        conf: Minimum score of a box.
        iou: IoU above which the weaker of two boxes of a class is dropped.
        max_det: Maximum number of boxes per image.
        score: Difference up to which scores count as nearly equal.
    """

    conf: float
    iou: float
    max_det: int = 300
    score: float

    @property
    def overlap(self) -> float:
        """Difference up to which overlaps count as nearly equal."""
        return max(self.score, _OVERLAP_TIE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """Candidates from which both runtimes chose the boxes of one image.

    Attributes:
        found: Decoded rows (N, 5 + nc) of cx, cy, w, h, objectness, class probabilities.
        expected: Decoded rows (N, 5 + nc) of the reference.
        rule: Thresholds of the choice.
    """

    found: Tensor
    expected: Tensor
    rule: TieRule


def count_ties(found: Tensor, expected: Tensor, pairs: list[tuple[int, int]], choice: Choice) -> int:
    """Count the boxes of both sides that have no partner because of a tie.

    Args:
        found: Rows (n, 6) that one runtime keeps.
        expected: Rows (m, 6) that the reference keeps.
        pairs: Indices (found, expected) of the boxes that have a partner.
        choice: Candidates of both.
    """
    lone = [set(range(len(found))) - {i for i, _ in pairs}, set(range(len(expected))) - {j for _, j in pairs}]
    if not any(lone):
        return 0
    rule = choice.rule
    sides = (_Side.of(found, choice.found, lone[0], rule), _Side.of(expected, choice.expected, lone[1], rule))
    # Whether a box is a tie may depend on others being ties, so this repeats until no more are found.
    while True:
        new = [
            (own, index)
            for own, other in (sides, sides[::-1])
            for index in own.lone - own.ties
            if own.is_alone(index, rule) and other.lost_by_tie(own.kept[index], rule)
        ]
        if not new:
            return sum(len(side.ties) for side in sides)
        for side, index in new:
            side.ties.add(index)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Side:
    """Boxes of one runtime for one image.

    Attributes:
        kept: Rows (n, 6) that it keeps.
        lone: Indices of kept boxes without a partner.
        ties: Indices of kept boxes that are known to be ties.
        options: Candidate rows (m, 6), including those just below the minimum score.
        is_torn: Flags (m,) bool, True if another class of the candidate has nearly the same score.
    """

    kept: Tensor
    lone: set[int]
    ties: set[int]
    options: Tensor
    is_torn: Tensor

    @classmethod
    def of(cls, kept: Tensor, decoded: Tensor, lone: set[int], rule: TieRule) -> _Side:
        """List the candidates among all decoded rows of an image."""
        scores = decoded[:, 5:] * decoded[:, 4:5]
        best = scores.amax(1, keepdim=True)
        is_near = scores >= best - rule.score
        place, label = (is_near & (scores > rule.conf - rule.score)).nonzero(as_tuple=True)
        score = scores[place, label]
        options = torch.cat((cxcywh_to_xyxy(decoded[place, :4]), score[:, None], label[:, None].float()), 1)
        return cls(kept=kept, lone=lone, ties=set(), options=options, is_torn=is_near.sum(1)[place] > 1)

    def is_alone(self, index: int, rule: TieRule) -> bool:
        """Check that no other kept box overlaps this one: two that do are a fault of NMS, never a tie."""
        overlap = self._overlap(self.kept[index])
        overlap[index] = 0
        return bool((overlap <= rule.iou + rule.overlap).all())

    def lost_by_tie(self, box: Tensor, rule: TieRule) -> bool:
        """Check whether this side had the box (6,) as a candidate and dropped it by a tie."""
        is_it = same_boxes(box[None], self.options)[0] & ((self.options[:, 4] - box[4]).abs() <= rule.score)
        return any(
            bool(self.is_torn[index]) or self._is_lost_by_tie(self.options[index], rule)
            for index in is_it.nonzero().flatten().tolist()
        )

    def _is_lost_by_tie(self, option: Tensor, rule: TieRule) -> bool:
        """Check whether a candidate, clearly of the best class of its row, was dropped by a tie."""
        score = option[4]
        if score <= rule.conf:
            return True
        if len(self.kept) >= rule.max_det and (self.kept[:, 4].min() - score).abs() <= rule.score:
            return True
        overlap = self._overlap(option)
        is_better, is_above = self.kept[:, 4] >= score - rule.score, overlap > rule.iou - rule.overlap
        is_hardly = (self.kept[:, 4] - score <= rule.score) | (overlap <= rule.iou + rule.overlap)
        suppressing = (is_better & is_above).nonzero().flatten().tolist()
        excused = [bool(is_hardly[index]) or index not in self.lone - self.ties for index in suppressing]
        return bool(excused) and all(excused)

    def _overlap(self, box: Tensor) -> Tensor:
        """Return the IoU of a box with each kept box of its class, and 0 for other classes: (n,)."""
        return box_iou(box[None, :4], self.kept[:, :4])[0] * (self.kept[:, 5] == box[5])
