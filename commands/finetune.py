"""Fine-tuning as a run: a pruned checkpoint trained on, with or without its dense teacher."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commands.finetune_config import FinetuneConfig
from commands.prune import check_agrees
from commands.train import run_training
from commands.train_config import TrainConfig
from commands.train_parts import starting_names
from commands.train_result import TrainResult
from engine.training.distributed import this_process
from engine.training.hooks import Hook
from models.detector import Detector, build_model
from models.weights import WeightsFile, read_weights
from pruning.distillation import DistillationHook, load_teacher
from pruning.sparsity.scale_rate import ScaleRateHook
from pruning.zeros.hooks import FrozenZerosHook
from pruning.zeros.masks import zero_masks
from utils.datasets.class_names import class_order
from utils.datasets.indexing.config import load_data_config
from utils.errors import CheckpointError, DataError

LOGGER = logging.getLogger(__name__)

# Where prune.py makes its run folders.
_PRUNE_PROJECT = Path("runs/prune")


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
    """Return hooks for zeros that are kept, faster scales and a teacher, where asked for."""
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
    """Find the weights: the file itself, or a bare name in the run folders of prune.py, newest first.

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
    """Return the settings of a new run, once all that it starts from fits together; nothing is written before."""
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
    """Return the classes a run on the data set has."""
    names = load_data_config(config.data).names
    return ("item",) if config.single_cls and len(names) > 1 else names


def _check_names(config: FinetuneConfig, weights: WeightsFile, *, path: Path) -> None:
    names = _class_names(config)
    if class_order(weights.names, names) is None:
        raise DataError(
            f"--data {config.data} has the classes {list(names)}, {path} has {list(weights.names)}; "
            "give the data set it was trained on, or train on another with train.py"
        )
