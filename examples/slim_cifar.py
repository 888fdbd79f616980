"""Classifiers made small on CIFAR-10: train, train sparse, prune, fine-tune; or prune by Taylor expansion in rounds.

    python -m examples.slim_cifar --model vgg16 --percent 0.7
    python -m examples.slim_cifar --model vgg16 --method taylor --target macs=50%

Slimming: Liu et al., ICCV 2017 (arXiv 1708.06519). Taylor: Molchanov et al., ICLR 2017 (arXiv 1611.06440).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from engine.classification import make_classifier, read_pictures, train_classifier
from engine.classifier_config import ClassifierConfig
from engine.hooks import Hook
from engine.optim import OptimizerName
from engine.schedule import ScheduleName
from models.classifiers import load_classifier
from pruning.allocation import Allocation, Allocator, ranked_ids
from pruning.cost import ChannelCost
from pruning.criteria import CRITERIA
from pruning.graph import ChannelGraph
from pruning.iterative import IterativeSettings, prune_iteratively
from pruning.planning import at_target
from pruning.prune_config import parse_target
from pruning.rounding import Rounding
from pruning.scale_rate import ScaleRateHook
from pruning.shortcuts import Shortcuts, candidate_ids
from pruning.sparsity import SparsityHook, Strengths, make_penalties
from pruning.surgery import cut
from pruning.training_task import classifier_task
from utils.cli import run_script
from utils.complexity import count_macs, count_parameters
from utils.datasets.classification import PictureData, channel_statistics
from utils.datasets.picture_loader import Augment, Normalisation
from utils.device import select_device
from utils.errors import ConfigError
from utils.run_folder import RunFolder

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
    exist_ok: bool = False  # go on in this folder: stages whose result.json is there are not run again

    def __post_init__(self) -> None:
        if self.percent is not None and self.target:
            raise ConfigError("--percent and --target both say how much to cut; leave one out")
        if self.method == "taylor" and self.target[:5] != "macs=":
            raise ConfigError("--method taylor prunes until --target macs=...; give it, such as --target macs=50%")


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """A network after a stage; accuracy from 0 to 1 on the test pictures, after the stage's last epoch."""

    stage: str
    accuracy: float
    parameters: int
    macs: int


def run(config: SlimClassifierConfig) -> None:
    """Every stage, one table, result.json."""
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    folder.write_config(config)
    data = read_pictures(_training(config, folder.path, "dense", epochs=1))
    rows = [_trained("dense", config, folder.path, data, epochs=config.epochs, lr0=config.lr0)]
    if config.method == "slimming":
        rows.append(_sparse(config, folder.path, data))
        small = _slimmed(config, folder.path / "sparse/weights/last.pt", data)
    else:
        small = _by_taylor(config, folder.path / "dense/weights/last.pt", data)
    lr0 = config.lr0 and config.lr0 / 10
    rows.append(
        _trained("fine-tuned", config, folder.path, data, model=small, epochs=config.finetune_epochs, lr0=lr0)
    )
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


def _training(config: SlimClassifierConfig, folder: Path, name: str, **values: Any) -> ClassifierConfig:
    shared = ("model", "data", "cache_dir", "batch_size", "weight_decay", "optimizer", "schedule", "augment")
    return ClassifierConfig(
        **{field: getattr(config, field) for field in (*shared, "device", "seed")},
        project=str(folder),
        name=name,
        exist_ok=True,
        **values,
    )


def _trained(
    stage: str,
    config: SlimClassifierConfig,
    folder: Path,
    data: PictureData,
    *,
    model: nn.Module | None = None,
    hooks: Callable[[nn.Module], Sequence[Hook]] | None = None,
    **values: Any,
) -> StageRow:
    """Train a new network, or this one, unless the stage is complete already."""
    training = _training(config, folder, stage, **values)
    path = folder / stage / "result.json"
    if not path.exists():
        model = make_classifier(training, data) if model is None else model
        train_classifier(model, data, config=training, hooks=hooks(model) if hooks else ())
    result = json.loads(path.read_text(encoding="utf-8"))
    loaded = load_classifier(folder / stage / "weights/last.pt").model
    return _row(stage, result["final_accuracy"], loaded, data)


def _row(stage: str, accuracy: float, model: nn.Module, data: PictureData) -> StageRow:
    macs = count_macs(model, data.image_chw)
    return StageRow(stage=stage, accuracy=accuracy, parameters=count_parameters(model), macs=macs)


def _sparse(config: SlimClassifierConfig, folder: Path, data: PictureData) -> StageRow:
    """Train new weights with scales drawn to zero."""

    def hooks(model: nn.Module) -> list[Hook]:
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

    return _trained("sparse", config, folder, data, hooks=hooks, epochs=config.sparse_epochs, lr0=config.lr0)


def _slimmed(config: SlimClassifierConfig, weights: Path, data: PictureData) -> nn.Module:
    """The sparse network without its channels of least scale."""
    model = load_classifier(weights).model
    graph = ChannelGraph.of(model, image_chw=data.image_chw)
    importance = CRITERIA["bn_gamma"](model, graph)
    allocator = Allocator(
        graph=graph,
        importance=importance,
        candidates=ranked_ids(candidate_ids(model, graph, config.shortcuts), importance),
        rounding=Rounding.parse(config.round),
    )
    return cut(model, graph, _allocation(allocator, model, config, data).dropped)


def _allocation(
    allocator: Allocator, model: nn.Module, config: SlimClassifierConfig, data: PictureData
) -> Allocation:
    if not config.target:
        return allocator.at(allocator.threshold_at(0.7 if config.percent is None else config.percent))
    cost = ChannelCost.of(model, allocator.graph, data.image_chw)
    return at_target(allocator, cost, parse_target(config.target))


def _by_taylor(config: SlimClassifierConfig, weights: Path, data: PictureData) -> nn.Module:
    """The dense network pruned and trained by turns."""
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
    mean, std = channel_statistics(data.train)
    images = Normalisation.of(mean, std, device=device)(data.train.images.to(device))
    task = classifier_task(images, data.train.labels.to(device), batch_size=config.batch_size, seed=config.seed)
    pruned, _ = prune_iteratively(model, task, settings=settings, image_chw=data.image_chw)
    return pruned.cpu()


if __name__ == "__main__":
    run_script(run, SlimClassifierConfig)
