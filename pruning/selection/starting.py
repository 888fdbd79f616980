"""Which of several networks to start from under a target: what a cut costs, by a rule, and the sentence on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.evaluation.evaluator import label
from pruning.choices import CostQuantity
from pruning.selection.targets import absolute_text

# Score that a network keeps when it is cut to a share of its cost: share ** CUT_EXPONENT. Measured twice, on small
# objects, fine-tuned with features: yolov5s cut to .26 of its multiply-adds ends at .270 of .341, yolov5n cut to .5
# at .236 of .275: these are .79 and .86, and .26 ** .18 = .78, .5 ** .18 = .88.
CUT_EXPONENT = 0.18
# The score of a probe, as a share of the best one's, counts as this power of it: on the same images, after 5 epochs
# yolov5n has .107 of yolov5s' .185, after 40 it has .275 of .341, and (.107 / .185) ** .4 = .275 / .341.
LEAD_EXPONENT = 0.4
# What a cut must promise above the best network that needs none, as a share of that one's score: scores after a few
# epochs differ by as much between seeds, and a dense network is trained once.
LEAST_GAIN = 0.05
# Image sizes beside a given one, as shares of it: those that any network may be fast enough at, and the one at which
# a smaller network costs about half as much again, so that a cut of a third brings it back.
_LOWER_SIZES, _HIGHER_SIZE = (4 / 5, 3 / 5), 5 / 4

# How a cost is shown: unit, what it is divided by, decimals.
_SHOWN: dict[CostQuantity, tuple[str, float, int]] = {
    "ms": ("ms", 1.0, 2),
    "macs": ("G MACs", 1e9, 3),
    "params": ("parameters", 1.0, 0),
}


def lower_sizes(given: tuple[int, ...], *, stride: int) -> list[tuple[int, ...]]:
    """Return smaller image sizes to compare with the given ones, in multiples of the stride, largest first."""
    sizes = [tuple(max(1, round(share * side / stride)) * stride for side in given) for share in _LOWER_SIZES]
    return list(dict.fromkeys(size for size in sizes if size < given))


def higher_size(given: tuple[int, ...], *, stride: int) -> tuple[int, ...]:
    """Return the next larger image sizes to compare with the given ones, a quarter more, at least one stride."""
    return tuple(max(math.ceil(side / stride) + 1, round(_HIGHER_SIZE * side / stride)) * stride for side in given)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A network that a run could start from, at one image size.

    Attributes:
        name: Name of its files in the run folder.
        weights: File of the network.
        img_size: Image sizes, as in `--img-size`.
        cost: Milliseconds, multiply-adds or parameters, whichever is limited.
        score: Score on val after the probe; None before it.
    """

    name: str
    weights: str
    img_size: tuple[int, ...]
    cost: float
    score: float | None = None

    def as_text(self) -> str:
        """Return network and size, for sentences."""
        return f"{self.weights} at {self.img_size[-1]} px"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Candidates beside what the run must reach.

    Attributes:
        quantity: Cost that is limited.
        limit: Highest cost.
        metric: Name of the score.
        epochs: Epochs of each probe.
        candidates: The networks; the first is that of `--weights` at `--img-size` where that can reach the target.
    """

    quantity: CostQuantity
    limit: float
    metric: str
    epochs: int
    candidates: Sequence[Candidate]

    @property
    def target(self) -> str:
        """The limit as a `--target`, the same for every network."""
        return absolute_text(self.quantity, self.limit)

    def share(self, candidate: Candidate) -> float:
        """Return the share of its cost that a candidate may keep; 1 if it needs no cut."""
        return min(1.0, self.limit / candidate.cost)

    def is_dense(self, candidate: Candidate) -> bool:
        """Return whether a candidate costs no more than the target as it is."""
        return candidate.cost <= self.limit

    def estimate(self, candidate: Candidate) -> float:
        """Estimate the score at the end of the run under the target, as a share of the best that no cut would reach.

        An estimate from few measurements. On photographs of an aquarium (7 classes, small objects, 224 px, 40 epochs,
        one seed) dense yolov5s has mAP .341 and dense yolov5n, with 26 % of its multiply-adds, .275; yolov5s cut
        to those 26 % ends at .24, after 32 epochs of fine-tuning with a teacher. A power of the share goes through
        .341 and .24, see `CUT_EXPONENT`. With it the smaller member of the family is better below 44 %, the larger
        one above, and for a target beyond the smaller member it is best to cut that. Early scores are further apart
        than late ones, see `LEAD_EXPONENT`. The same powers serve milliseconds, parameters and image sizes. Where
        objects are large and classes few, a cut costs less.
        """
        scores = [own.score for own in self.candidates if own.score is not None]
        assert candidate.score is not None, f"{candidate.name} has not been probed"
        lead = candidate.score / max(scores) if any(scores) else 1.0
        return float(lead**LEAD_EXPONENT * self.share(candidate) ** CUT_EXPONENT)

    @property
    def best_dense(self) -> Candidate | None:
        """The best candidate that needs no cut, among equals the largest; None if all need one."""
        return self._best([candidate for candidate in self.candidates if self.is_dense(candidate)])

    @property
    def best_cut(self) -> Candidate | None:
        """The candidate to cut with the best estimate, among equals the one cut least; None if none needs a cut."""
        cut = [candidate for candidate in self.candidates if not self.is_dense(candidate)]
        return self._best(cut, least=True)

    def _best(self, candidates: Sequence[Candidate], *, least: bool = False) -> Candidate | None:
        sign = -1 if least else 1
        return max(candidates, key=lambda own: (self.estimate(own), sign * own.cost), default=None)

    @property
    def recommended(self) -> Candidate:
        """The candidate to start from: one that needs no cut, unless a cut promises more than `LEAST_GAIN`."""
        dense, cut = self.best_dense, self.best_cut
        if dense is None:
            assert cut is not None, "there are no candidates"
            return cut
        if cut is not None and self.estimate(cut) > (1 + LEAST_GAIN) * self.estimate(dense):
            return cut
        return dense

    @property
    def reason(self) -> str:
        """The recommendation in one sentence, with the best alternative of the other kind."""
        dense, cut = self.best_dense, self.best_cut
        if self.recommended is dense:
            begin = f"take the dense {dense.as_text()}"
            own = f"it takes {self._costs(dense.cost, self.limit)} and {self._promise(dense)}"
            if cut is None:
                return f"{begin}; no candidate needs a cut: {own}"
            other = f"{cut.as_text()} cut to {self.share(cut):.0%} about {self.estimate(cut):.0%}"
            return f"{begin}; pruning will not pay here: {own}, {other}; a cut must promise {LEAST_GAIN:.0%} more"
        assert cut is not None
        begin = f"start from {cut.as_text()} and prune it from {self._costs(cut.cost, self.limit, word='to')}"
        if dense is None:
            return f"{begin}: it {self._promise(cut)}, and no candidate is fast or small enough as it is"
        return f"{begin}: it {self._promise(cut)}, the dense {dense.as_text()} about {self.estimate(dense):.0%}"

    def _promise(self, candidate: Candidate) -> str:
        return f"should reach about {self.estimate(candidate):.0%} of the best {label(self.metric)} without a cut"

    def _costs(self, own: float, limit: float, *, word: str = "of") -> str:
        heading, divisor, digits = _SHOWN[self.quantity]
        return f"{own / divisor:,.{digits}f} {word} {limit / divisor:,.{digits}f} {heading}"

    def as_text(self) -> str:
        """Return a line for each candidate: network, size, cost, share that is left, scores once they are known."""
        heading, divisor, digits = _SHOWN[self.quantity]
        width = max(len("network"), *(len(candidate.weights) for candidate in self.candidates))
        is_probed = all(candidate.score is not None for candidate in self.candidates)
        scores = f" {'probe ' + label(self.metric):>12} {'estimate':>9}" if is_probed else ""
        lines = [f"{'network':<{width}} {'px':>5} {heading:>12} {'cut to':>7}{scores}"]
        for own in self.candidates:
            kept = "-" if self.is_dense(own) else f"{self.share(own):.0%}"
            line = f"{own.weights:<{width}} {own.img_size[-1]:>5} {own.cost / divisor:>12,.{digits}f} {kept:>7}"
            lines.append(line + (f" {own.score:>12.3f} {self.estimate(own):>9.0%}" if is_probed else ""))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with rule, estimates and recommendation, once all are probed."""
        rows = [
            {
                "name": own.name,
                "weights": own.weights,
                "img_size": list(own.img_size),
                "cost": own.cost,
                "cut_to": self.share(own),
                "score": own.score,
                "estimate": self.estimate(own),
            }
            for own in self.candidates
        ]
        return {
            "quantity": self.quantity,
            "limit": self.limit,
            "metric": self.metric,
            "probe_epochs": self.epochs,
            "rule": {"cut_exponent": CUT_EXPONENT, "lead_exponent": LEAD_EXPONENT, "least_gain": LEAST_GAIN},
            "candidates": rows,
            "recommended": self.recommended.name,
            "reason": self.reason,
        }
