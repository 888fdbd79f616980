"""The seam between the verbs and the two kinds of networks.

A verb asks `task_of` which task its settings name, and does the same things for all of them. A further task is one
more file beside `detection.py` and `classification.py`, and one more value in `tasks.choose.TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deploy.outputs.outputs import Source
from deploy.settings import RuntimeOptions
from engine.choices import OptimizerName
from engine.evaluation.evaluator import EvaluationSet, OnBatch
from engine.training.distributed import Process
from engine.training.hooks import Hook
from engine.training.recipe import ShortRuns
from engine.training.trainer import TrainingLoader, TrainingLoss
from engine.training.validation import ValidationHook
from models.classifiers import ClassifierSpec
from models.spec import ModelSpec
from pruning.features import Followed, Teaching
from tasks.settings import TaskSettings, ValSettings
from utils.config.hyp import Hyp
from utils.storage.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network with its description.

    Attributes:
        model: The network; its description is in `spec`.
        spec: Description from which it is rebuilt; plain data by `to_dict`.
        names: Class names by id.
        checkpoint: Whole checkpoint that it was read from, if this project wrote the file.
    """

    model: nn.Module
    spec: ModelSpec | ClassifierSpec
    names: tuple[str, ...]
    checkpoint: Checkpoint | None = None

    @property
    def trace_chw(self) -> tuple[int, int, int] | None:
        """Size of an image to trace the network with; None where any size does, see `ChannelGraph.of`."""
        if not isinstance(self.spec, ClassifierSpec):
            return None
        channels, height, width = self.spec.image_chw
        return channels, height, width

    def with_model(self, model: nn.Module) -> Network:
        """Return the same with another network, such as a pruned one; a detector carries its own description."""
        return replace(self, model=model, spec=getattr(model, "spec", self.spec), checkpoint=None)

    def to_checkpoint(self, config: dict[str, Any], **values: Any) -> Checkpoint:
        """Return the content of its file, with the settings that made it and further values of a checkpoint."""
        return Checkpoint(
            spec=self.spec.to_dict(), names=self.names, weights=self.model.state_dict(), config=config, **values
        )


@dataclass(frozen=True, kw_only=True)
class Data:
    """The two splits of a training, label indexes or labelled images."""

    train: Any
    val: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by id."""
        return tuple(self.train.names)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How networks of a task are trained where the settings leave it open.

    Attributes:
        hyp: Path of the YAML of hyper-parameters.
        adaptive_rate: Learning rate of Adam and kin, as a share of the YAML's, which is meant for SGD.
        momenta: Momentum of the optimisers for which that of the YAML is not meant, by their name.
        least_warmup: Minimum length of a warm-up in batches, except in short runs.
        nominal_batch: Images to which batches are accumulated where the settings give no number.
        short_runs: Rules by which runs of few steps differ; None if they do not.
        has_mean_loss: Whether the loss is a mean over the images of a batch, not a sum, to which decay is scaled.
        has_mixed_validation: Whether epochs are validated in mixed precision, not in float32.
        is_averaged: Whether averaged weights are measured and shipped instead of the trained ones.
        is_half: Whether weights to ship are stored in 16 bits.
        searched: Names of the hyper-parameters that `--evolve` varies.
    """

    hyp: str
    adaptive_rate: float
    momenta: Mapping[OptimizerName, float]
    least_warmup: int
    nominal_batch: int
    short_runs: ShortRuns | None
    has_mean_loss: bool
    has_mixed_validation: bool
    is_averaged: bool
    is_half: bool
    searched: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How the numbers of an epoch are reported.

    Attributes:
        table: Names of metrics by column of results.csv.
        line: Names of metrics by label in the line of an epoch.
        digits: Number of decimals in that line.
        headline: Names of the few numbers of result.json that compare networks, as in `Evaluation.headline`.
    """

    table: Mapping[str, str]
    line: Mapping[str, str]
    digits: int
    headline: tuple[str, ...]


class Task(Protocol):
    """Everything that differs between tasks.

    Attributes:
        name: Name for messages, such as "detection".
        metric: Name of what `Evaluation.score` measures.
        recipe: How its networks are trained.
        columns: How the numbers of an epoch are reported.
        ignored: Names of settings that change nothing in this task.
        ignored_later: Names of settings that change nothing once the network exists.
    """

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def recipe(self) -> Recipe: ...

    @property
    def columns(self) -> Columns: ...

    @property
    def ignored(self) -> tuple[str, ...]: ...

    @property
    def ignored_later(self) -> tuple[str, ...]: ...

    def load(self, path: str | Path) -> Network:
        """Read a weights file; the network is in evaluation mode, float32, on the CPU."""

    def restored(self, checkpoint: Checkpoint, settings: TaskSettings, *, where: str) -> Network:
        """Rebuild the network of a run to resume, with the trained (not the averaged) weights."""

    def make_network(self, settings: TaskSettings, data: Data, *, hyp: Hyp) -> Network:
        """Build the network to train: new, or from weights."""

    def check_agrees(self, network: Network, cfg: str, *, weights: str) -> None:
        """Refuse a network that is not the one that `--cfg` names."""

    def is_pruned(self, network: Network) -> bool:
        """Return whether channels of the network were pruned."""

    def check_rebuilt(self, network: Network) -> None:
        """Refuse a pruned network that its checkpoint would not give back."""

    def describe(self, network: Network, folder: Path) -> None:
        """Write what else describes a pruned network, beside its checkpoint, into a run folder."""

    def read_data(self, settings: TaskSettings, *, network: Network | None = None) -> Data:
        """Read both splits; classes get the order of `network`, by default of the one to start from."""

    def class_names(self, settings: TaskSettings) -> tuple[str, ...]:
        """Return the classes that a training on the data would have."""

    def read_split(self, settings: TaskSettings, split: str, *, network: Network) -> Any:
        """Read one split, "train", "val" or "test", to measure a network on; classes get its order."""

    def train_loader(
        self,
        settings: TaskSettings,
        network: Network,
        data: Data,
        *,
        hyp: Hyp,
        device: torch.device,
        process: Process,
    ) -> TrainingLoader:
        """Return the augmented batches of this process."""

    def loss(self, settings: TaskSettings, network: Network, *, hyp: Hyp, process: Process) -> TrainingLoss:
        """Return the loss of the network."""

    def scales(self, settings: TaskSettings, network: Network) -> range:
        """Return the image sizes in pixels of multi-scale training, in steps of the stride; empty without."""

    def evaluation_set(self, settings: TaskSettings, split: Any, *, network: Network | None = None) -> EvaluationSet:
        """Return the images of a split, and how a network, or a runtime made from it, is scored on them."""

    def load_runtime(self, path: str, *, device: torch.device, options: RuntimeOptions) -> Any:
        """Load a checkpoint or an artefact as a runtime, and refuse one of another task."""

    def validation(self, settings: ValSettings, runtimes: Sequence[Any]) -> EvaluationSet:
        """Return what val.py measures runtimes on, after a check that they fit each other and the data."""

    def batch_files(self, settings: ValSettings, images: EvaluationSet, folder: Path) -> OnBatch | None:
        """Return what val.py draws and writes for each batch."""

    def hooks(self, settings: TaskSettings, data: Data, *, validation: ValidationHook) -> Sequence[Hook]:
        """Return the hooks that only this task has."""

    def sample_images(self, folder: Path, names: Sequence[str]) -> OnBatch | None:
        """Return what draws sample images during an evaluation into a run folder."""

    def plot_data(self, data: Data, folder: Path) -> None:
        """Plot the training data into a run folder."""

    def image_chw(self, network: Network, img_size: int) -> tuple[int, int, int]:
        """Return the size of an image for which costs are counted."""

    def input_chw(self, network: Network, image_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Return the size of the images that a quantised or exported network takes."""

    def quantised(self, quantised: Callable[[Tensor], Any], network: Network) -> Any:
        """Return a quantised network in the shape that the task's `EvaluationSet` takes."""

    def source(self, network: Network, *, path: str | Path) -> Source:
        """Return the network as the source of artefacts; `path` is the file that it was read from, or ""."""

    def calibration(
        self, settings: TaskSettings, network: Network, *, count: int, image_chw: tuple[int, int, int]
    ) -> list[Tensor]:
        """Return training images, as the network takes them, spread evenly over the split."""

    def examples(
        self, settings: TaskSettings, network: Network, *, count: int, image_chw: tuple[int, int, int]
    ) -> Tensor:
        """Return validation images (N, C, H, W), as the network takes them, or others where no data is given."""

    def distillation(self, teacher: str, network: Network, teaching: Teaching) -> Hook:
        """Return the hook with which the network learns from a teacher.

        Args:
            teacher: File of the teacher.
            network: Student.
            teaching: How much the student learns of the teacher.

        Raises:
            CheckpointError: The file cannot be read.
            ConfigError: The teacher's answers mean something else than those of the student.
            PruningError: The plan is of another teacher or student.
        """

    def teaching_hook(self, teacher: nn.Module, *, strength: float, followed: Followed | None) -> Hook:
        """Return the hook with which a network learns from a teacher that is already there.

        Args:
            teacher: Network in evaluation mode whose outputs mean the same as the student's.
            strength: Weight of the outputs.
            followed: Channels of the teacher that the student follows; None for outputs alone.
        """
