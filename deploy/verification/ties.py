"""Boxes that only one of two runtimes keeps because a choice between nearly equal numbers fell the other way.

Suppression keeps the better one of two boxes that overlap. Where their scores differ by less than runtimes do, each
may keep another one, and what the one suppresses the other may not. Nothing is wrong with such a runtime, so these
boxes are counted apart. A box is a tie only if the other runtime had it to choose from, same class, same place, same
score, and lost it

* to the threshold: its score there is no more than the least score;
* to another class of the same place, whose score is nearly the same;
* at the most boxes per image: the last one that was kept is hardly better;
* to boxes that suppress it, each of which is hardly better, or hardly overlaps enough, or is paired with a box that
  does not suppress it here, or is itself kept there only by a tie.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploy.verification.matching import same_boxes
from utils.boxes import box_iou, cxcywh_to_xyxy

# How near the threshold an overlap is a tie at least: suppression moves each class to a place of its own, where
# float32 has steps of thousandths of a pixel.
_OVERLAP_TIE = 0.01


@dataclass(frozen=True, kw_only=True)
class TieRule:
    """How boxes were chosen, and what is nearly equal.

    Attributes:
        conf: Least score of a box.
        iou: Overlap above which the weaker of two boxes of one class is dropped.
        max_det: Most boxes per image.
        score: Difference up to which scores are nearly equal.
    """

    conf: float
    iou: float
    max_det: int = 300
    score: float

    @property
    def overlap(self) -> float:
        """Difference up to which overlaps are nearly equal."""
        return max(self.score, _OVERLAP_TIE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What both runtimes chose the boxes of one image from.

    Attributes:
        found: (N, 5 + nc) cx, cy, w, h, objectness, class probabilities.
        expected: (N, 5 + nc) of the reference.
        rule: How they chose.
    """

    found: Tensor
    expected: Tensor
    rule: TieRule


def count_ties(found: Tensor, expected: Tensor, pairs: list[tuple[int, int]], choice: Choice) -> int:
    """Count the boxes of both sides that have no partner because of a tie.

    Args:
        found: (n, 6) rows that one runtime keeps.
        expected: (m, 6) rows that the reference keeps.
        pairs: Indices of the boxes that have a partner.
        choice: What they were chosen from.
    """
    lone = [set(range(len(found))) - {i for i, _ in pairs}, set(range(len(expected))) - {j for _, j in pairs}]
    if not any(lone):
        return 0
    rule = choice.rule
    sides = (_Side.of(found, choice.found, lone[0], rule), _Side.of(expected, choice.expected, lone[1], rule))
    # What is a tie may depend on other boxes being ties: repeated until no more are found.
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
        kept: (n, 6) rows that it keeps.
        lone: Indices of those without partner.
        ties: Indices of those that are known to be ties.
        options: (m, 6) rows that it chose from, those just below the least score included.
        is_torn: (m,) whether another class of the place is hardly better or worse.
    """

    kept: Tensor
    lone: set[int]
    ties: set[int]
    options: Tensor
    is_torn: Tensor

    @classmethod
    def of(cls, kept: Tensor, decoded: Tensor, lone: set[int], rule: TieRule) -> _Side:
        """List the options among all places of an image."""
        scores = decoded[:, 5:] * decoded[:, 4:5]
        best = scores.amax(1, keepdim=True)
        is_near = scores >= best - rule.score
        place, label = (is_near & (scores > rule.conf - rule.score)).nonzero(as_tuple=True)
        score = scores[place, label]
        options = torch.cat((cxcywh_to_xyxy(decoded[place, :4]), score[:, None], label[:, None].float()), 1)
        return cls(kept=kept, lone=lone, ties=set(), options=options, is_torn=is_near.sum(1)[place] > 1)

    def is_alone(self, index: int, rule: TieRule) -> bool:
        """Whether no other kept box overlaps this one: two that do are a fault of the suppression, never a tie."""
        overlap = self._overlap(self.kept[index])
        overlap[index] = 0
        return bool((overlap <= rule.iou + rule.overlap).all())

    def lost_by_tie(self, box: Tensor, rule: TieRule) -> bool:
        """Whether this side had the box (6,) to choose from, and lost it by a tie."""
        is_it = same_boxes(box[None], self.options)[0] & ((self.options[:, 4] - box[4]).abs() <= rule.score)
        return any(
            bool(self.is_torn[index]) or self._is_lost_by_tie(self.options[index], rule)
            for index in is_it.nonzero().flatten().tolist()
        )

    def _is_lost_by_tie(self, option: Tensor, rule: TieRule) -> bool:
        """Whether an option that is clearly the best class of its place was lost by a tie."""
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
        """(n,): IoU of a box with each kept one of its class, 0 with those of others."""
        return box_iou(box[None, :4], self.kept[:, :4])[0] * (self.kept[:, 5] == box[5])
