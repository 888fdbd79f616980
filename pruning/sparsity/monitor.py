"""Report the progress of a sparsity training every epoch: how close to zero, how fast, and what to try next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from engine.training.hooks import Hook
from engine.training.schedule import SCHEDULES, Schedule
from engine.training.trainer import Trainer
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.channels.shortcuts import candidate_ids
from pruning.choices import Shortcuts, Sparsity
from pruning.importance.criteria import CRITERIA, Criterion
from pruning.selection.allocation import Allocator, ranked_ids
from pruning.selection.scales import ScaleStats, Verdict, judge
from pruning.sparsity.penalties import decayed
from pruning.sparsity.settings import Strengths
from utils.plots.pruning import plot_ridge
from utils.storage.files import write_json

LOGGER = logging.getLogger(__name__)

_BINS = 80
# With a higher learning rate the loss can separate scales; a stronger term alone draws all of them alike. On BCCD,
# with half of the scales below .45, mAP was .45 at 5 times the rate, and .56 at 20 times with a quarter of the
# strength.
_GOOD_RATE = 20.0


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One kind of scale that is drawn to zero.

    Attributes:
        criterion: Criterion that measures the scale.
        flag: Name of the command-line flag for its strength.
        strength: Strength that is set; None if none is, and there is nothing to judge.
        rate: Factor of its learning rate, or None if that cannot be set.
    """

    criterion: Criterion
    flag: str
    strength: float | None
    rate: float | None = None

    def advised(self, factor: float) -> dict[str, float]:
        """Return the settings, by flag, that make the force `factor` times as large."""
        assert self.strength is not None
        if self.rate is None or factor <= 1:
            return {self.flag: self.strength * factor}
        rate = min(max(self.rate, _GOOD_RATE), self.rate * factor)
        return {"scale-rate": rate, self.flag: self.strength * factor * self.rate / rate}


def watched(sparsity: Sparsity, strengths: Strengths, *, scale_rate: float) -> dict[str, Watched]:
    """List what a sparsity variant draws to zero, by name: `gamma` for scales, `filter` for kernels."""
    is_mixed = sparsity == "mixed"
    kinds = {
        "gamma": Watched(
            criterion=CRITERIA["bn_gamma"],
            flag="srb" if is_mixed else "sr",
            strength=strengths.scale,
            rate=scale_rate,
        ),
        "filter": Watched(
            criterion=CRITERIA["kernel_l1"], flag="src" if is_mixed else "sr", strength=strengths.kernel
        ),
    }
    return {name: kind for name, kind in kinds.items() if kind.strength}


# Scales of channels that fade, see `pruning.sparsity.fading`.
FADING = {"gamma": Watched(criterion=CRITERIA["bn_gamma"], flag="sr", strength=None)}


class SparsityMonitor(Hook):
    """Reports shares near zero, what can be pruned now, and a verdict with the strength to try; plots the ridge.

    The values are put into `TrainState.extra`, and so into results.csv and TensorBoard. At the end sparsity.json
    and, with `is_plotting`, <name>_ridge.png are written to the run folder.
    """

    def __init__(
        self,
        model: nn.Module,
        kinds: Mapping[str, Watched],
        *,
        shortcuts: Shortcuts,
        aim: float,
        is_decayed: bool,
        folder: Path,
        is_plotting: bool,
        image_chw: tuple[int, int, int] | None = None,
    ) -> None:
        self.model, self.kinds, self.aim, self.is_decayed = model, dict(kinds), aim, is_decayed
        self.folder, self.is_plotting = folder, is_plotting
        self.graph = ChannelGraph.of(model, image_chw=image_chw)
        self.candidates: IntArray = candidate_ids(model, self.graph, shortcuts)
        self.stats: dict[str, list[dict[str, float]]] = {}
        self.ridges: dict[str, list[list[int]]] = {}
        self.edges: dict[str, list[float]] = {}
        self.force: list[float] = []

    def before_training(self, trainer: Trainer) -> None:
        """Record the initial scales; a resumed run has them already."""
        if not self.force:
            self.force = [0.0]
            for name, kind in self.kinds.items():
                self._note(name, kind)

    def epoch_end(self, trainer: Trainer) -> None:
        """Measure the scales, judge them, and report the result."""
        self.force.append(sum(self._forces(trainer)[: trainer.state.epoch + 1]))
        for name, kind in self.kinds.items():
            stats = self._note(name, kind)
            numbers = {"below_0.01": stats.below_hundredth, "below_0.001": stats.below_thousandth}
            numbers |= {"prunable": stats.prunable, "at_aim": stats.at_aim}
            trainer.state.extra |= {f"sparsity/{name}_{key}": value for key, value in numbers.items()}
            judged = "" if kind.strength is None else f"; {verdict_line(self._verdict(name, trainer), kind)}"
            LOGGER.info("%s: %s%s", name, stats.as_text(), judged)

    def end(self, trainer: Trainer) -> None:
        """Write sparsity.json and the ridge plots."""
        if not trainer.process.is_main or len(self.force) < 2:
            return
        result: dict[str, Any] = {"aim": self.aim, "force": self.force}
        for name, kind in self.kinds.items():
            result[name] = {"strength": kind.strength, "epochs": self.stats[name]}
            result[name] |= {"edges": self.edges[name], "ridges": self.ridges[name]}
            if kind.strength is not None:
                verdict = self._verdict(name, trainer)
                result[name] |= {
                    "verdict": verdict.speed,
                    "reason": verdict.reason,
                    "next": kind.advised(verdict.factor),
                }
            if self.is_plotting:
                self._plot(name)
        write_json(self.folder / "sparsity.json", result)

    def state(self) -> dict[str, Any]:
        """Return the history of statistics, histograms and force."""
        return {"stats": self.stats, "ridges": self.ridges, "edges": self.edges, "force": self.force}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the history from `state`."""
        for name, value in state.items():
            setattr(self, name, value)

    def _note(self, name: str, kind: Watched) -> ScaleStats:
        """Add the current scales to the history."""
        importance = kind.criterion(self.model, self.graph)
        candidates = ranked_ids(self.candidates, importance)
        allocator = Allocator(graph=self.graph, importance=importance, candidates=candidates)
        stats = ScaleStats.of(allocator, aim=self.aim)
        self.stats.setdefault(name, []).append(stats.to_dict())
        scales: FloatArray = importance[candidates]
        if name not in self.edges:
            self.edges[name] = np.linspace(0, float(np.quantile(scales, 0.99)), _BINS + 1).tolist()
        counts, _ = np.histogram(scales.clip(max=self.edges[name][-1]), bins=self.edges[name])
        self.ridges.setdefault(name, []).append(counts.tolist())
        return stats

    def _plot(self, name: str) -> None:
        path = self.folder / f"{name}_ridge.png"
        plot_ridge(np.array(self.ridges[name]), np.array(self.edges[name]), path, what=f"|{name}|")
        LOGGER.info("%s over the epochs: %s", name, path)

    def _verdict(self, name: str, trainer: Trainer) -> Verdict:
        at_aim = [stats["at_aim"] for stats in self.stats[name]]
        return judge(at_aim, self.force, total_force=sum(self._forces(trainer)), aim=self.aim)

    def _forces(self, trainer: Trainer) -> list[float]:
        """Return the force of every epoch of the run, relative to that of the first without warm-up."""
        epochs = trainer.settings.epochs
        return [
            _reach(trainer.schedule, epoch) * (decayed(1.0, epoch=epoch, epochs=epochs) if self.is_decayed else 1.0)
            for epoch in range(epochs)
        ]


def _reach(schedule: Schedule, epoch: int) -> float:
    """Return how far a constant gradient moves a parameter in an epoch, relative to the full rate.

    The distance is proportional to rate / (1 - momentum), taken in the middle of the epoch.
    """
    hyp, middle = schedule.hyp, (epoch + 0.5) * schedule.batches
    warm = schedule.warmup_progress(round(middle))
    momentum = hyp.warmup_momentum + (hyp.momentum - hyp.warmup_momentum) * warm
    rate = SCHEDULES[schedule.name](middle / (schedule.epochs * schedule.batches), hyp.lrf)
    return warm * rate * (1 - hyp.momentum) / (1 - momentum)


def verdict_line(verdict: Verdict, kind: Watched) -> str:
    """Return the verdict in words, with the settings to try if the strength is not right."""
    line = f"{verdict.speed}: {verdict.reason}"
    if verdict.factor == 1:
        return line
    return f"{line}; try " + " ".join(f"--{flag} {value:.2g}" for flag, value in kind.advised(verdict.factor).items())
