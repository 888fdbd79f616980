"""Record of a RePr run: which filters were off in which epochs, and the validation result after each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.repr.ranked_filters import Rows
from utils.plots.repr import plot_filter_map, plot_stages
from utils.storage.files import write_json

if TYPE_CHECKING:
    from engine.training.trainer import TrainState


@dataclass(kw_only=True)
class Stage:
    """A span of epochs in which the same filters were off.

    Attributes:
        start: First epoch of the span, from 0.
        off: Indices of the filters that were off, by path of the layer.
        end: First epoch in which they were back; None while they are off.
        orthogonal: Number of filters that came back orthogonal to all others; the rest came back random.
    """

    start: int
    off: dict[str, list[int]]
    end: int | None = None
    orthogonal: int = 0


@dataclass(kw_only=True)
class ReprRecord:
    """The stages and the validation curve of a run.

    Attributes:
        widths: Number of filters of each ranked layer, by path, in order.
        stages: Stages so far.
        curve: First validation metric, by epoch (from 0).
        metric: Name of that metric.
        running: Training state; when a checkpoint is written, it has the validation of the epoch that ends.
    """

    widths: Mapping[str, int]
    stages: list[Stage] = field(default_factory=list)
    curve: dict[int, float] = field(default_factory=dict)
    metric: str = ""
    running: TrainState | None = None

    def begin(self, off: Rows, *, epoch: int) -> None:
        """Start a stage: these filters are off from this epoch on."""
        self.stages.append(Stage(start=epoch, off={name: rows.tolist() for name, rows in off.items()}))

    def finish(self, *, epoch: int, orthogonal: int) -> None:
        """End the last stage: its filters are back from this epoch on."""
        self.stages[-1].end, self.stages[-1].orthogonal = epoch, orthogonal

    def note_metrics(self, metrics: Mapping[str, float], *, epoch: int) -> None:
        """Add the validation result after an epoch, if there is one."""
        if metrics and epoch >= 0:
            self.metric, value = next(iter(metrics.items()))
            self.curve[epoch] = float(value)

    def state(self) -> dict[str, Any]:
        """Return the record as plain data, with the validation result of the epoch that is being saved."""
        if self.running is not None:
            self.note_metrics(self.running.metrics, epoch=self.running.epoch)
        return {"stages": [asdict(stage) for stage in self.stages], "curve": self.curve, "metric": self.metric}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore stages and curve from `state`."""
        self.stages = [Stage(**stage) for stage in state["stages"]]
        self.curve, self.metric = dict(state["curve"]), state["metric"]

    def write(self, folder: Path, *, settings: Mapping[str, Any], is_plotting: bool) -> None:
        """Write repr.json and, with `is_plotting`, repr_map.png and repr_curve.png."""
        write_json(folder / "repr.json", {"settings": settings, "widths": self.widths, **self.state()})
        if not is_plotting:
            return
        if self.stages:
            plot_filter_map(self.widths, [stage.off for stage in self.stages], folder / "repr_map.png")
        if self.curve:
            spans = [(stage.start, stage.end) for stage in self.stages]
            plot_stages(self.curve, spans, folder / "repr_curve.png", what=self.metric)
