"""Fine-tuning as a run: a pruned checkpoint trained on, with or without its dense teacher."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import TrainConfig
from engine.distributed import this_process
from engine.hooks import Hook
from engine.materials import starting_names
from engine.run_result import TrainResult
from engine.training import run_training
from models.detector import Detector, build_model
from models.weights import WeightsFile, read_weights
from pruning.distillation import DistillationHook, load_teacher
from pruning.frozen_zeros import FrozenZerosHook
from pruning.pipeline import check_agrees
from pruning.scale_rate import ScaleRateHook
from pruning.unstructured import zero_masks
from utils.datasets.class_names import class_order
from utils.datasets.config import load_data_config
from utils.errors import CheckpointError, ConfigError, DataError

LOGGER = logging.getLogger(__name__)

# Where prune.py makes its run folders.
_PRUNE_PROJECT = Path("runs/prune")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TrainConfig):
    """Train a pruned detector back to accuracy; it keeps its widths, anchors and classes."""

    weights: str = "pruned_model.pt"  # pruned checkpoint; a bare name is also looked for in the newest runs/prune/*
    cfg: str = ""  # only checked: the network is that of the weights, and a YAML of another one is refused
    epochs: int = 100  # passes over the training images
    noautoanchor: bool = False  # always so here: the anchors are those of the checkpoint
    evolve: int = 0  # not here; search with train.py
    project: str = "runs/finetune"  # where run folders are made
    teacher: str = ""  # dense checkpoint whose answers are learnt beside the labels (knowledge distillation)
    distill: float = 1.0  # weight of the teacher's answers; 0 is plain fine-tuning
    freeze_zeros: bool = False  # weights that are exactly 0 in the checkpoint stay 0, see prune.py --unstructured
    scale_rate: float = 1.0  # learning rate of batch-norm scales, as a multiple: sparse training left them small

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.distill < float("inf"):
            raise ConfigError(f"--distill {self.distill}: expected 0 or a positive number, such as 1")
        if not 0 < self.scale_rate < float("inf"):
            raise ConfigError(f"--scale-rate {self.scale_rate}: expected a positive number, such as 1 or 20")
        if self.evolve:
            raise ConfigError("--evolve is not for fine-tuning; search hyper-parameters with train.py --weights")


def run_finetuning(config: FinetuneConfig) -> TrainResult | None:
    """Fine-tune, validate, and write the run folder.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead.

    Returns:
        The result on the main process, None on the others.

    Raises:
        CheckpointError: The weights are not found or cannot be read.
        ConfigError: The teacher's answers mean something else than those of the weights.
        PruningError: `cfg` is another network than the weights.
        DataError: The data set has other classes than the weights.
    """
    return run_training(config if config.resume else _checked(config), hooks=finetuning_hooks)


def finetuning_hooks(model: Detector, config: TrainConfig, folder: Path) -> Sequence[Hook]:
    """Zeros that stay, faster scales and a teacher, where asked for."""
    assert isinstance(config, FinetuneConfig)
    hooks: list[Hook] = []
    if config.freeze_zeros:
        masks = zero_masks(model)
        if not masks:
            LOGGER.warning("--freeze-zeros: %s has no weight of exactly 0, so nothing is frozen", config.weights)
        hooks.append(FrozenZerosHook(masks))
    if config.scale_rate != 1:
        hooks.append(ScaleRateHook(config.scale_rate))
    if config.distill != FinetuneConfig.distill and not config.teacher:
        LOGGER.warning("without --teacher; without effect: --distill")
    if config.teacher and config.distill == 0:
        LOGGER.warning("--distill 0: the teacher is not used, this is plain fine-tuning")
    elif config.teacher:
        teacher = load_teacher(config.teacher, spec=model.spec, names=starting_names(config) or _class_names(config))
        hooks.append(DistillationHook(teacher, strength=config.distill))
    return hooks


def find_weights(name: str) -> Path:
    """The file itself; a bare name that is no file is looked for in the run folders of prune.py, newest first.

    Raises:
        CheckpointError: No name is given, or none of them has such a file.
    """
    path = Path(name)
    if not name:
        raise CheckpointError("no --weights given; give the checkpoint that prune.py wrote")
    if path.exists() or path.name != name:
        return path
    found = sorted(_PRUNE_PROJECT.glob(f"*/{glob.escape(name)}"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError(
            f"--weights {name}: no such file here or in {_PRUNE_PROJECT}/*; run prune.py first, or give a path"
        )
    return found[-1]


def _checked(config: FinetuneConfig) -> FinetuneConfig:
    """The settings of a new run, once all that it starts from fits together; nothing is written before."""
    path = find_weights(config.weights)
    weights = read_weights(path)
    if config.cfg:  # what does not fit another network would silently start from scratch
        check_agrees(build_model(weights.spec), config.cfg, weights=str(path))
    _check_names(config, weights, path=path)
    if config.teacher and config.distill:
        load_teacher(config.teacher, spec=weights.spec, names=weights.names)
    if this_process().is_main:
        if str(path) != config.weights:
            LOGGER.info("--weights %s: taking %s, the newest", config.weights, path)
        if not weights.spec.widths and not config.freeze_zeros:
            LOGGER.warning("%s: nothing was pruned: widths are empty; this trains a dense network on", path)
    return replace(config, weights=str(path), cfg="", noautoanchor=True)


def _class_names(config: TrainConfig) -> tuple[str, ...]:
    """The classes a run on the data set has."""
    names = load_data_config(config.data).names
    return ("item",) if config.single_cls and len(names) > 1 else names


def _check_names(config: FinetuneConfig, weights: WeightsFile, *, path: Path) -> None:
    names = _class_names(config)
    if class_order(weights.names, names) is None:
        raise DataError(
            f"--data {config.data} has the classes {list(names)}, {path} has {list(weights.names)}; "
            "give the data set it was trained on, or train on another with train.py"
        )
