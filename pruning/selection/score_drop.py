"""How far rounds of pruning go: until the network has lost more of its score than is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from engine.evaluation.evaluator import label
from utils.errors import ConfigError
from utils.storage.files import write_json

# The decision of a run, in its folder.
DROP_NAME = "drop.json"
# In floating point .62 - .61 is more than .01.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class TriedRound:
    """A round of cutting and fine-tuning.

    Attributes:
        number: Index of the round, from 1.
        target: Cost that it had to reach, such as "ms=6.4".
        score: Score on val after fine-tuning, 0 to 1; None where there is none.
    """

    number: int
    target: str
    score: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreDrop:
    """The rounds of a run beside the dense network, and which of them is the last to keep enough of its score.

    Attributes:
        metric: Name of the score, such as "AP".
        allowed: Largest drop of the score, in points of 1.
        dense: Score of the dense network on val.
        rounds: Rounds so far, in order; only the last one can have lost more than is allowed.
        ended: Reason for which no further round was begun; "" while rounds go on, or after one that lost too much.
    """

    metric: str
    allowed: float
    dense: float
    rounds: tuple[TriedRound, ...] = ()
    ended: str = ""

    def after(self, target: str, score: float | None) -> ScoreDrop:
        """Return the same with a further round."""
        score = None if score is None or math.isnan(score) else score
        tried = TriedRound(number=len(self.rounds) + 1, target=target, score=score)
        return replace(self, rounds=(*self.rounds, tried))

    def lost(self, tried: TriedRound) -> float:
        """Return how much of the dense network's score a round lost, all of it where it has none."""
        return self.dense - (tried.score or 0.0)

    def is_within(self, tried: TriedRound) -> bool:
        """Return whether a round lost no more than is allowed."""
        return self.lost(tried) <= self.allowed + _ROUNDING

    @property
    def taken(self) -> TriedRound | None:
        """The round whose network is shipped, the last one before any that lost too much; None for the dense one."""
        return next(reversed(list(takewhile(self.is_within, self.rounds))), None)

    @property
    def is_over(self) -> bool:
        """Whether no further round is to be run."""
        return bool(self.ended) or not all(map(self.is_within, self.rounds))

    @property
    def reason(self) -> str:
        """The decision in one sentence: which network, what it lost, and what the next round would have lost."""
        name, allows = label(self.metric), f"--max-map-drop allows {self.allowed:g}"
        if self.taken is None:
            lost = f"round 1 lost {self.lost(self.rounds[0]):.4f} and {allows}" if self.rounds else self.ended
            return f"taking the dense network, {name} {self.dense:.4f}: {lost or 'no round is complete'}"
        lost = f"{name} {self.taken.score or 0:.4f} where the dense network has {self.dense:.4f}, {allows}"
        last = self.rounds[-1]
        further = f"round {last.number} would have lost {self.lost(last):.4f}"
        if last is self.taken:
            further = f"no further round: {self.ended or 'this one is the latest'}"
        return f"taking round {self.taken.number}: {lost}; {further}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with the decision and its reason."""
        rounds = [
            {"round": tried.number, "target": tried.target, "score": tried.score, "lost": self.lost(tried)}
            for tried in self.rounds
        ]
        return {
            "metric": self.metric,
            "allowed": self.allowed,
            "dense": self.dense,
            "rounds": rounds,
            "taken": self.taken and self.taken.number,
            "ended": self.ended,
            "reason": self.reason,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ScoreDrop:
        """Build it from what `to_dict` returned."""
        rounds = tuple(
            TriedRound(number=int(row["round"]), target=str(row["target"]), score=row["score"])
            for row in values["rounds"]
        )
        plain = {name: values[name] for name in ("metric", "allowed", "dense", "ended")}
        return cls(**plain, rounds=rounds)

    def save(self, folder: Path) -> None:
        """Write it into a run folder."""
        write_json(folder / DROP_NAME, self.to_dict())

    @classmethod
    def load(cls, folder: Path) -> ScoreDrop | None:
        """Read what `save` wrote into a run folder; None where it wrote nothing.

        Raises:
            ConfigError: The file is damaged.
        """
        path = folder / DROP_NAME
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read: {error}; remove it, and --resume {folder} decides again"
            ) from error
