"""Fine-tuning as a run: a pruned checkpoint trained on, with or without its dense teacher."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from commands.finetune_config import FinetuneConfig
from commands.train import HookFactory, run_training
from commands.train_config import TrainConfig
from commands.train_result import TrainResult
from engine.training.distributed import this_process
from engine.training.hooks import Hook
from pruning.features import Teaching
from pruning.sparsity.scale_rate import ScaleRateHook
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from pruning.zeros.hooks import FrozenZerosHook
from pruning.zeros.masks import zero_masks
from tasks.choose import task_of
from tasks.task import Network, Task
from utils.datasets.class_names import class_order
from utils.errors import CheckpointError, DataError, PruningError

LOGGER = logging.getLogger(__name__)

# Settings that matter with a teacher.
_TEACHING = ("distill", "features", "plan")
# Where prune.py makes its run folders.
_PRUNE_PROJECT = Path("runs/prune")


def run_finetuning(config: FinetuneConfig, *, task: Task | None = None) -> TrainResult | None:
    """Fine-tune, validate, and write the run folder.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead.
        task: The task, by default that of data and network; one with images of your own from Python.

    Returns:
        The result on the main process, None on the others.

    Raises:
        CheckpointError: The weights are not found or cannot be read.
        ConfigError: The teacher's answers mean something else than those of the weights.
        PruningError: `cfg` is another network than the weights.
        DataError: The data set has other classes than the weights.
    """
    hooks: HookFactory = partial(finetuning_hooks, task=task) if task else finetuning_hooks
    return run_training(config if config.resume else _checked(config, task), hooks=hooks, task=task)


def finetuning_hooks(
    network: Network, config: TrainConfig, folder: Path, *, task: Task | None = None
) -> Sequence[Hook]:
    """Return hooks for zeros that are kept, faster scales and a teacher, where asked for.

    Args:
        network: Network to train.
        config: Settings of the fine-tuning.
        folder: Run folder.
        task: The task, by default that of data and teacher.
    """
    assert isinstance(config, FinetuneConfig)
    hooks: list[Hook] = []
    if config.freeze_zeros:
        masks = zero_masks(network.model)
        if not masks:
            LOGGER.warning("--freeze-zeros: %s has no weight of exactly 0, so nothing is frozen", config.weights)
        hooks.append(FrozenZerosHook(masks))
    if config.scale_rate != 1:
        hooks.append(ScaleRateHook(config.scale_rate))
    unused = [f"--{name}" for name in _TEACHING if getattr(config, name) != getattr(FinetuneConfig, name)]
    if unused and not config.teacher:
        LOGGER.warning("without --teacher; without effect: %s", ", ".join(unused))
    if config.teacher and not _teaches(config):
        LOGGER.warning("--distill 0 and no features to follow: the teacher is not used, this is plain fine-tuning")
    elif config.teacher:
        hooks.append(_distillation(config, network, task))
    return hooks


def _teaches(config: FinetuneConfig) -> bool:
    """Return whether the student learns anything of a teacher."""
    return bool(config.teacher) and (config.distill > 0 or (config.features > 0 and bool(config.plan)))


def _distillation(config: FinetuneConfig, network: Network, task: Task | None) -> Hook:
    """Return the hook of the teacher."""
    task = task or task_of(data=config.data, weights=config.teacher)
    plan = PruningPlan.load(Path(config.plan)) if config.plan else None
    teaching = Teaching(answers=config.distill, features=config.features, plan=plan)
    return task.distillation(config.teacher, network, teaching)


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


def _checked(config: FinetuneConfig, own: Task | None) -> FinetuneConfig:
    """Return the settings of a new run, once all that it starts from fits together; nothing is written before."""
    given, path = config.weights, find_weights(config.weights)
    task = own or task_of(data=config.data, weights=str(path))
    network = task.load(path)
    if config.cfg:  # what does not fit another network would silently start from scratch
        task.check_agrees(network, config.cfg, weights=str(path))
    names = task.class_names(config)
    if class_order(network.names, names) is None:
        raise DataError(
            f"--data {config.data} has the classes {list(names)}, {path} has {list(network.names)}; "
            "give the data set it was trained on, or train on another with train.py"
        )
    config = replace(config, weights=str(path), cfg="", noautoanchor="noautoanchor" not in task.ignored)
    config = _with_plan(config, network, own)
    if this_process().is_main:
        if str(path) != given:
            LOGGER.info("--weights %s: taking %s, the newest", given, path)
        if not task.is_pruned(network) and not config.freeze_zeros:
            LOGGER.warning("%s: no channel was pruned; this trains a dense network on", path)
    return config


def _with_plan(config: FinetuneConfig, network: Network, task: Task | None) -> FinetuneConfig:
    """Return the settings with the plan that the features of the teacher are followed by; "" where there is none.

    Raises:
        CheckpointError: The teacher cannot be read.
        ConfigError: Its answers mean something else than those of the weights.
        PruningError: The plan that is given is of another cut; one that was only found is left out instead.
    """
    found = Path(config.weights).with_name(PLAN_NAME)
    is_given = bool(config.plan)
    if not is_given and config.teacher and config.features and found.is_file():
        config = replace(config, plan=str(found))
    if not _teaches(config):
        return config
    try:
        _distillation(config, network, task)
    except PruningError as error:
        if is_given:
            raise PruningError(f"--plan {config.plan}: {error}") from None
        LOGGER.info("only the teacher's answers are learnt; %s does not fit: %s", found, error)
        config = replace(config, plan="")
        _distillation(config, network, task)
    return config
