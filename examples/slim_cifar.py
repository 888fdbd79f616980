"""Classifiers made small on CIFAR-10: train, train sparse, prune, fine-tune; or prune by Taylor expansion in rounds.

    python -m examples.slim_cifar --model vgg16 --percent 0.7
    python -m examples.slim_cifar --model vgg16 --method taylor --target macs=50%

Slimming: Liu et al., ICCV 2017 (arXiv 1708.06519). Taylor: Molchanov et al., ICLR 2017 (arXiv 1611.06440).
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from commands.classify import make_classifier, read_pictures
from commands.classify_config import ClassifierConfig
from engine.choices import OptimizerName, ScheduleName
from engine.evaluation.classification_scores import ClassificationLoss, picture_batches
from engine.training.hooks import Hook
from engine.training.task import TrainingTask
from examples.stages import Stage, experiment_folder, train_stage
from models.classifiers import load_classifier
from models.complexity import count_macs, count_parameters
from pruning.channels.graph import ChannelGraph
from pruning.channels.shortcuts import candidate_ids
from pruning.choices import Shortcuts
from pruning.importance.cost import ChannelCost
from pruning.importance.criteria import CRITERIA, num_ids
from pruning.iterative import IterativeSettings, prune_iteratively
from pruning.selection.allocation import Allocation, Allocator, ranked_ids
from pruning.selection.planner import at_target
from pruning.selection.rounding import Rounding
from pruning.selection.targets import parse_target
from pruning.sparsity.penalties import SparsityHook, make_penalties
from pruning.sparsity.scale_rate import ScaleRateHook
from pruning.sparsity.settings import Strengths
from pruning.surgery.cut import cut
from utils.config.choices import Augment
from utils.config.cli import run_script
from utils.config.values import check_least
from utils.datasets.classes.pictures import PictureData
from utils.device import select_device
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
    batch_size: int = 64  # pictures per step
    lr0: float | None = 0.1  # first learning rate of training; a tenth of it for fine-tuning
    weight_decay: float = 1e-4  # of convolutions and linear layers
    optimizer: OptimizerName = "sgd"
    schedule: ScheduleName = "multistep"  # a tenth after half and after three quarters of a run
    augment: Augment = "crop-flip"  # none, crop, crop-flip
    device: str = ""  # cpu, or the number of a GPU; empty takes a GPU if there is one
    seed: int = 0  # of weights, order and augmentation
    project: str = "runs/slim_cifar"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # go on in this folder: complete stages are kept, one that was begun continues

    def __post_init__(self) -> None:
        check_least(self, epochs=1, sparse_epochs=1, finetune_epochs=1, sr=0, scale_rate=0, batch_size=2)
        check_least(self, step=1, updates=0)
        if self.update_lr <= 0:
            raise ConfigError(f"--update-lr {self.update_lr}: expected a positive number, such as 0.001")
        if self.percent is not None and not 0 <= self.percent < 1:
            raise ConfigError(
                f"--percent {self.percent}: expected a share from 0 up to, not including, 1, such as 0.7"
            )
        Rounding.parse(self.round)
        if self.percent is not None and self.target:
            raise ConfigError("--percent and --target both say how much to cut; leave one out")
        if self.method == "taylor" and self.target[:5] != "macs=":
            raise ConfigError("--method taylor prunes until --target macs=...; give it, such as --target macs=50%")
        if self.target:
            parse_target(self.target)


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A network after a stage; accuracy from 0 to 1 on the test pictures, after the stage's last epoch."""

    stage: str
    accuracy: float
    parameters: int
    macs: int


def run(config: SlimClassifierConfig) -> None:
    """Every stage, one table, result.json."""
    folder = experiment_folder(config)
    training = _training(config, folder.path, "dense", epochs=config.epochs)
    data = read_pictures(training)
    _check_target(make_classifier(training, data), config, data)  # now, not after the dense training
    stages = {"dense": train_stage(training, data)}
    if config.method == "slimming":
        stages["sparse"] = _sparse(config, folder.path, data)
    stages["fine-tuned"] = _finetuned(config, folder.path, data)
    rows = [_row(name, stage, data) for name, stage in stages.items()]
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


def _check_target(fresh: nn.Module, config: SlimClassifierConfig, data: PictureData) -> None:
    """Refuse what cannot be cut so far, or costs no more than that as it is.

    Raises:
        ConfigError, PruningError: It is one of these.
    """
    allocator = _allocator(fresh, config, data)
    _allocation(allocator, fresh, config, data)
    if not config.target:
        return
    target, cost = parse_target(config.target), ChannelCost.of(fresh, allocator.graph, data.image_chw)
    now = cost.macs() if target.quantity == "macs" else cost.parameters()
    if target.absolute(now) >= now:
        raise ConfigError(f"--target {config.target}: {config.model} has {now:.4g}, nothing to prune; give less")


def _training(
    config: SlimClassifierConfig, folder: Path, name: str, *, epochs: int, lr_factor: float = 1.0
) -> ClassifierConfig:
    shared = ("model", "data", "cache_dir", "batch_size", "weight_decay", "optimizer", "schedule", "augment")
    return ClassifierConfig(
        **{field: getattr(config, field) for field in (*shared, "device", "seed")},
        epochs=epochs,
        lr0=config.lr0 and config.lr0 * lr_factor,
        project=str(folder),
        name=name,
    )


def _row(name: str, stage: Stage, data: PictureData) -> StageRow:
    model = load_classifier(stage.weights).model
    macs = count_macs(model, data.image_chw)
    return StageRow(stage=name, accuracy=stage.accuracy, parameters=count_parameters(model), macs=macs)


def _sparse(config: SlimClassifierConfig, folder: Path, data: PictureData) -> Stage:
    """Train new weights with scales drawn to zero."""

    training = _training(config, folder, "sparse", epochs=config.sparse_epochs)
    return train_stage(training, data, hooks=lambda model: _sparsity_hooks(model, config, data))


def _sparsity_hooks(model: nn.Module, config: SlimClassifierConfig, data: PictureData) -> list[Hook]:
    penalties = make_penalties(
        model,
        sparsity="bn",
        strengths=Strengths(scale=config.sr),
        shortcuts=config.shortcuts,
        is_decayed=False,
        image_chw=data.image_chw,
    )
    faster = [ScaleRateHook(config.scale_rate)] if config.scale_rate != 1 else []
    return [*faster, SparsityHook(penalties)]


def _finetuned(config: SlimClassifierConfig, folder: Path, data: PictureData) -> Stage:
    """Prune what the stage before left, and train it at a tenth of the rate."""

    def make_model() -> nn.Module:
        if config.method == "slimming":
            return _slimmed(config, folder / "sparse/weights/last.pt", data)
        return _by_taylor(config, folder / "dense/weights/last.pt", data)

    training = _training(config, folder, "fine-tuned", epochs=config.finetune_epochs, lr_factor=0.1)
    return train_stage(training, data, make_model=make_model)


def _slimmed(config: SlimClassifierConfig, weights: Path, data: PictureData) -> nn.Module:
    """Return the sparse network without its channels of least scale."""
    model = load_classifier(weights).model
    allocator = _allocator(model, config, data)
    return cut(model, allocator.graph, _allocation(allocator, model, config, data).dropped)


def _allocator(model: nn.Module, config: SlimClassifierConfig, data: PictureData) -> Allocator:
    """Ranks channels by the scales of their batch norms; before Taylor's rounds they are all alike."""
    graph = ChannelGraph.of(model, image_chw=data.image_chw)
    by_scale = config.method == "slimming"
    importance = CRITERIA["bn_gamma"](model, graph) if by_scale else np.ones(num_ids(graph))
    return Allocator(
        graph=graph,
        importance=importance,
        candidates=ranked_ids(candidate_ids(model, graph, config.shortcuts), importance),
        rounding=Rounding.parse(config.round),
    )


def _allocation(
    allocator: Allocator, model: nn.Module, config: SlimClassifierConfig, data: PictureData
) -> Allocation:
    if not config.target:
        return allocator.at(allocator.threshold_at(0.7 if config.percent is None else config.percent))
    cost = ChannelCost.of(model, allocator.graph, data.image_chw)
    return at_target(allocator, cost, parse_target(config.target))


def _by_taylor(config: SlimClassifierConfig, weights: Path, data: PictureData) -> nn.Module:
    """Return the dense network pruned and trained by turns."""
    device = select_device(config.device)
    loaded = load_classifier(weights)
    model = loaded.model.to(device)
    now = count_macs(model, data.image_chw)
    settings = IterativeSettings(
        ratio=1 - parse_target(config.target).absolute(now) / now,
        quantity="macs",
        step=config.step,
        updates=config.updates,
        lr=config.update_lr,
        final_updates=0,
        shortcuts=config.shortcuts,
        rounding=Rounding.parse(config.round),
    )
    loader = picture_batches(
        data.train.to(device), loaded.spec, batch_size=config.batch_size, is_training=True, seed=config.seed
    )
    task = TrainingTask(loader=loader, loss=ClassificationLoss(), device=device)
    pruned, _ = prune_iteratively(model, task, settings=settings, image_chw=data.image_chw)
    return pruned.cpu()


if __name__ == "__main__":
    run_script(run, SlimClassifierConfig)
