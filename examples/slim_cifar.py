"""Classifiers made small on CIFAR-10: train, train sparse, prune, fine-tune; or prune by Taylor expansion in rounds.

    python -m examples.slim_cifar --model vgg16 --percent 0.7
    python -m examples.slim_cifar --model vgg16 --method taylor --target macs=50%

Slimming: Liu et al., ICCV 2017 (arXiv 1708.06519). Taylor: Molchanov et al., ICLR 2017 (arXiv 1611.06440).
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.train import run_training, train_stage
from commands.train_config import TrainConfig
from commands.train_recipe import read_hyp
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from engine.choices import OptimizerName, ScheduleName
from examples.stages import Stage, experiment_folder, prune_stage
from pruning.choices import CriterionName, Shortcuts
from pruning.selection.planner import Planner
from pruning.selection.targets import parse_target
from pruning.surgery.report import NetworkSize
from tasks.choose import CLASSIFICATION
from utils.config.choices import Augment
from utils.config.cli import run_script
from utils.config.values import check_least
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SlimClassifierConfig:
    """Train a classifier, make it small, train it back."""

    model: str = "vgg16"  # such as vgg16, resnet56, preresnet164, densenet40
    data: str = "cifar10"  # cifar10 or mnist, fetched once, or an .npz of x_train, y_train, x_test and y_test
    cache_dir: str = ""  # where fetched data are kept; empty is the user's cache folder
    method: Literal["slimming", "taylor"] = "slimming"  # by scales trained to zero, or by Taylor expansion in rounds
    percent: float | None = None  # share of channels to cut; 0.7 unless --target is given
    target: str = ""  # or what is to be left, such as macs=50%
    shortcuts: Shortcuts = "tied"  # channels that additions join: skip leaves them alone, tied prunes them together
    round: str = "none"  # widths to keep: none, a number to be a multiple of, or pow2
    epochs: int = 160  # of the dense network
    sparse_epochs: int = 160  # of slimming; they start from new weights, as in the paper
    finetune_epochs: int = 160  # of the pruned network
    sr: float = 1e-4  # force on scales
    scale_rate: float = 1.0  # learning rate of scales while they are drawn to zero, as a multiple
    step: int = 64  # of taylor: channels cut each round
    updates: int = 30  # of taylor: training steps after each cut
    update_lr: float = 1e-3  # of taylor: their learning rate
    batch_size: int = 64  # images per step
    lr0: float | None = 0.1  # first learning rate of training; a tenth of it for fine-tuning
    weight_decay: float = 1e-4  # of convolutions and linear layers
    optimizer: OptimizerName = "sgd"
    schedule: ScheduleName = "multistep"  # decay of the learning rate in each stage
    milestones: tuple[float, ...] = (0.5, 0.75)  # shares of a stage after which multistep falls to a tenth
    augment: Augment = "crop-flip"  # none, crop, crop-flip
    device: str = ""  # cpu, or the number of a GPU; empty takes a GPU if there is one
    seed: int = 0  # of weights, order and augmentation
    project: str = "runs/slim_cifar"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # go on in this folder: complete stages are kept, one that was begun continues

    def __post_init__(self) -> None:
        check_least(self, epochs=1, sparse_epochs=1, finetune_epochs=1, batch_size=2)
        if self.percent is not None and self.target:
            raise ConfigError("--percent and --target both say how much to cut; leave one out")
        if self.method == "taylor" and self.target[:5] != "macs=":
            raise ConfigError("--method taylor prunes until --target macs=...; give it, such as --target macs=50%")
        # Each stage checks its own settings.
        self.sparse_training(Path())
        self.pruning(Path(), Path("weights.pt"))

    def training(self, folder: Path) -> TrainConfig:
        """Return the training of the dense network."""
        return TrainConfig(cfg=self.model, epochs=self.epochs, name="dense", **self._shared(folder))

    def sparse_training(self, folder: Path) -> SparsityConfig:
        """Return the training of new weights with scales drawn to zero."""
        return SparsityConfig(
            cfg=self.model,
            epochs=self.sparse_epochs,
            sr=self.sr,
            beta_ratio=0,
            scale_rate=self.scale_rate,
            decay=False,
            shortcuts=self.shortcuts,
            name="sparse",
            **self._shared(folder),
        )

    def pruning(self, folder: Path, weights: Path) -> PruneConfig:
        """Return the cut of what the stage before left, at once by scales or in rounds by Taylor expansion."""
        by_taylor: dict[str, Any] = {
            "criterion": "taylor",
            "iterative": True,
            "step": self.step,
            "updates": self.updates,
            "lr": self.update_lr,
        }
        percent = 0.7 if self.percent is None and not self.target else self.percent
        return PruneConfig(
            weights=str(weights),
            percent=percent,
            target=self.target,
            shortcuts=self.shortcuts,
            round=self.round,
            data=self.data,
            cache_dir=self.cache_dir,
            batch_size=self.batch_size,
            device=self.device,
            seed=self.seed,
            project=str(folder),
            name="pruned",
            exist_ok=True,
            **(by_taylor if self.method == "taylor" else {}),
        )

    def finetuning(self, folder: Path, weights: Path) -> FinetuneConfig:
        """Return the training of the pruned network at a tenth of the rate."""
        shared = {**self._shared(folder), "lr0": self.lr0 and self.lr0 / 10}
        return FinetuneConfig(weights=str(weights), epochs=self.finetune_epochs, name="fine-tuned", **shared)

    def _shared(self, folder: Path) -> dict[str, Any]:
        names = ("data", "cache_dir", "batch_size", "lr0", "weight_decay", "optimizer", "schedule", "augment")
        steps = ("milestones",) if self.schedule == "multistep" else ()
        return {
            **{name: getattr(self, name) for name in (*names, *steps, "device", "seed")},
            "nominal_batch": self.batch_size,
            "patience": 0,
            "project": str(folder),
            "exist_ok": True,
        }


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A network after a stage; accuracy from 0 to 1 on the test images, after the stage's last epoch."""

    stage: str
    accuracy: float
    parameters: int
    macs: int


def run(config: SlimClassifierConfig) -> None:
    """Every stage, one table, result.json."""
    folder = experiment_folder(config)
    _check_target(config)  # now, not after the dense training
    stages = {"dense": train_stage(config.training(folder.path), run_training)}
    source = stages["dense"]
    if config.method == "slimming":
        stages["sparse"] = source = train_stage(config.sparse_training(folder.path), run_sparsity_training)
    pruned = prune_stage(config.pruning(folder.path, source / "weights/last.pt"))
    stages["fine-tuned"] = train_stage(config.finetuning(folder.path, pruned), run_finetuning)
    sizes = json.loads((pruned.parent / "result.json").read_text(encoding="utf-8"))["report"]
    rows = [
        _row(name, Stage.of(stage), sizes["after" if name == "fine-tuned" else "before"])
        for name, stage in stages.items()
    ]
    dense = rows[0]
    for row in rows:
        LOGGER.info(
            "%-10s accuracy %.4f  parameters %9d (%5.1f %% fewer)  MACs %10d (%5.1f %% fewer)",
            row.stage,
            row.accuracy,
            row.parameters,
            100 * (1 - row.parameters / dense.parameters),
            row.macs,
            100 * (1 - row.macs / dense.macs),
        )
    folder.write_result({"rows": [asdict(row) for row in rows]})
    LOGGER.info("results in %s", folder.path)


def _check_target(config: SlimClassifierConfig) -> None:
    """Refuse what cannot be cut so far, or costs no more than that as it is.

    Raises:
        ConfigError, PruningError: It is one of these.
    """
    training, task = config.training(Path()), CLASSIFICATION
    network = task.make_network(training, task.read_data(training), hyp=read_hyp(training, task.recipe))
    image_chw = task.image_chw(network, 0)
    settings = config.pruning(Path(), Path("weights.pt")).plan_settings(image_chw, network.trace_chw)
    # How far Taylor's rounds can go does not depend on which channels matter.
    criterion: CriterionName = "bn_gamma" if config.method == "slimming" else "kernel_l1"
    Planner.of(network.model, replace(settings, criterion=criterion)).decide()
    if not config.target:
        return
    target, size = parse_target(config.target), NetworkSize.of(network.model, image_chw)
    now = size.macs if target.quantity == "macs" else size.parameters
    if target.absolute(now) >= now:
        raise ConfigError(f"--target {config.target}: {config.model} has {now:.4g}, nothing to prune; give less")


def _row(name: str, stage: Stage, size: dict[str, Any]) -> StageRow:
    return StageRow(stage=name, accuracy=stage.accuracy, parameters=size["parameters"], macs=size["macs"])


if __name__ == "__main__":
    run_script(run, SlimClassifierConfig)
