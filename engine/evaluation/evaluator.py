"""The one way to measure a network: run it over a split, score its outputs, and time the stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from engine.evaluation.predict import Predict
from utils.device import memory_advice
from utils.progress import SizedIterable, progress

# Called with the step, the batch, and its results: for each image rows of boxes, or the logits of the batch.
OnBatch: TypeAlias = Callable[[int, Any, Any], None]


class Evaluation(Protocol):
    """Results of an evaluation, whatever the task.

    Attributes:
        images: Number of images evaluated.
        seconds: Time per stage, by name.
    """

    @property
    def images(self) -> int: ...

    @property
    def seconds(self) -> Mapping[str, float]: ...

    @property
    def is_finite(self) -> bool:
        """Whether the network's outputs were numbers."""

    @property
    def score(self) -> float:
        """The number by which networks are compared: mAP50-95 or accuracy, 0 to 1; higher is better."""

    @property
    def fitness(self) -> float:
        """The number by which the best epoch is chosen."""

    @property
    def headline(self) -> Mapping[str, float]:
        """The few numbers for one line, by their names in result.json; the last one is `score`."""

    def numbers(self) -> dict[str, float]:
        """Return the numbers that an epoch reports, by name; those that could not be measured are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation's part of result.json."""

    def as_text(self, *, is_verbose: bool = False) -> str:
        """Return the totals and, if `is_verbose` or with few classes, a line for each class."""

    def save(self, folder: Path) -> None:
        """Write files and plots into a run folder."""


class Scorer(Protocol):
    """Collects the outputs of a network, batch by batch, and scores them."""

    def add(self, batch: Any, outputs: Tensor) -> Any:
        """Add the outputs for a batch, and return them in the form that `OnBatch` takes."""

    def scores(self) -> Evaluation:
        """Score everything that was added."""


class EvaluationSet(Protocol):
    """The images of a split, and how outputs for them are scored."""

    @property
    def is_labelled(self) -> bool:
        """Whether there is anything to be measured by."""

    def few(self, count: int) -> EvaluationSet:
        """Return so many of the images, evenly spread; all where there are fewer, and for a count of 0."""

    def framed(self, frame_hw: tuple[int, int] | None) -> EvaluationSet:
        """Return the same images at one height and width; None leaves the size to the network."""

    @property
    def advice(self) -> str:
        """Return the remedy if memory does not suffice."""

    def start(self, network: Any, device: torch.device) -> None:
        """Start the processes that load images now; those that start later get a copy of more memory."""

    def batches(self, network: Any, device: torch.device) -> SizedIterable[Any]:
        """Return the batches for a network, or for a runtime that takes only one size."""

    def predictor(self, network: Any, device: torch.device) -> Predict:
        """Return the function that runs a network on `device`."""

    def scorer(self, clock: StageClock) -> Scorer:
        """Return a scorer that has seen nothing yet."""


@dataclass(frozen=True, kw_only=True)
class StageClock:
    """Measures the seconds of each stage; waits for the device, whose work would otherwise count in the next stage.

    Attributes:
        device: Device that computes.
        seconds: Seconds so far, by name of the stage.
    """

    device: torch.device
    seconds: dict[str, float]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in this context to a stage."""
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures networks and runtimes on one split.

        predict = data.predictor(network, device)
        for batch in data.batches(network):
            scorer.add(batch, predict(batch.normalised()))
        return scorer.scores()

    Attributes:
        data: Images, and how outputs are scored.
        device: Device to compute on.
        autocast: Dtype of mixed precision; None for none.
    """

    data: EvaluationSet
    device: torch.device
    autocast: torch.dtype | None = None

    @torch.inference_mode()
    def evaluate(self, network: Any, *, on_batch: OnBatch | None = None) -> Evaluation:
        """Run a network over every image and score it; a module is left in the mode it was in.

        Args:
            network: Module, runtime of deploy/, or several runtimes of an ensemble.
            on_batch: Function called after each batch, to draw or to save.
        """
        clock = StageClock(device=self.device, seconds={})
        scorer = self.data.scorer(clock)
        with memory_advice(self.data.advice), _evaluating(network):
            predict = self.data.predictor(network, self.device)
            batches = self.data.batches(network, self.device)
            for step, batch in enumerate(progress(batches, description="evaluating")):
                with clock.stage("preprocess"):
                    placed = batch.to(self.device)
                    images = placed.normalised()
                with (
                    clock.stage("inference"),
                    torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None),
                ):
                    outputs = predict(images)
                found = scorer.add(placed, outputs)
                if on_batch is not None:
                    on_batch(step, batch, found)
        return scorer.scores()


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Set a module to evaluation mode for the time of this context."""
    was_training = isinstance(network, nn.Module) and network.training
    if was_training:
        network.eval()
    try:
        yield
    finally:
        if was_training:
            network.train()


def speed_line(evaluation: Evaluation) -> str:
    """Format the milliseconds per image of each stage."""
    count = max(evaluation.images, 1)
    stages = ", ".join(f"{name} {1000 * spent / count:.3g}" for name, spent in evaluation.seconds.items())
    return f"ms per image: {stages}"


def label(name: str) -> str:
    """Return the label of a number for people: COCO's AP is a mean over classes, so it is shown as mAP."""
    return f"m{name}" if name.startswith("AP") else name


def change(before: Evaluation, after: Evaluation) -> str:
    """Format the headline numbers of two evaluations, such as those before and after a cut."""
    pairs = zip(before.headline.items(), after.headline.values(), strict=True)
    return ", ".join(f"{label(name)} {old:.3f} -> {new:.3f}" for (name, old), new in pairs)
