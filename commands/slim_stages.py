"""The stages of slim.py, one after the other: what each starts from, how it runs, and the network it leaves."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from commands.export import run_export
from commands.export_config import ExportConfig
from commands.finetune import run_finetuning
from commands.finetune_config import FinetuneConfig
from commands.prune import CHECKPOINT_NAME, run_pruning
from commands.prune_config import PruneConfig
from commands.prune_latency import LATENCY_NAME, check_cut, cost_of, table_for
from commands.quantize import run_quantization
from commands.quantize_config import QAT_NAME
from commands.slim_config import SlimConfig, StageName
from commands.train import run_training, train_stage
from commands.train_result import best_checkpoint
from commands.train_sparsity import run_sparsity_training
from commands.train_sparsity_config import SparsityConfig
from engine.training.distributed import share, this_process, wait_for_all
from pruning.selection.latency import LatencyTable
from pruning.selection.score_drop import ScoreDrop
from pruning.selection.targets import absolute_text, parse_target, steps_towards
from pruning.surgery.plan import PLAN_NAME, PruningPlan
from tasks.choose import task_of
from tasks.task import Network
from utils.datasets.class_names import class_order
from utils.errors import CheckpointError, ConfigError, PruningError
from utils.storage.run_folder import CONFIG_NAME

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step between the weights that the user gives and the file that is shipped.

    Attributes:
        name: Name for --stages.
        folder: Run folder of the step.
        script: Script that does the same by hand.
        settings: Function from the network that the step starts from to its settings; reads no network.
        run: Function that runs the step with its settings.
        is_shared: Whether all processes take part; else the first one runs the step and the others wait.
        network: Function from the folder to the network that the step leaves there; None if it leaves none.
    """

    name: StageName
    folder: Path
    script: str
    settings: Callable[[str], Any]
    run: Callable[[Any], object]
    is_shared: bool = False
    network: Callable[[Path], Path] | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the step has run to its end, which it writes last."""
        return (self.folder / "result.json").exists()

    @property
    def result(self) -> dict[str, Any]:
        """Content of the result.json of a complete step."""
        return result_in(self.folder)


def result_in(folder: Path) -> dict[str, Any]:
    """Read the result.json of the run folder of a complete step."""
    content: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return content


def stages_of(config: SlimConfig, folder: Path, *, rounds: int | None = None) -> list[Stage]:
    """Return all stages of a run in their order, whether or not they are asked for.

    Args:
        config: Settings of the run.
        folder: Run folder.
        rounds: Number of rounds; by default those of the settings, and where `max_map_drop` ends them those that were
            begun, and a next one unless they are over.
    """
    if rounds is None:
        rounds = config.rounds if config.max_map_drop is None else _rounds_so_far(config, folder)
    return [
        Stage(
            name="dense",
            folder=folder / "dense",
            script="train.py",
            settings=lambda weights: config.dense_training(weights, folder / "dense"),
            run=partial(train_stage, run=run_training),
            is_shared=True,
            network=best_checkpoint,
        ),
        *(stage for number in range(1, rounds + 1) for stage in round_stages(config, folder, number)),
        Stage(
            name="export",
            folder=folder / "export",
            script="export.py",
            settings=lambda weights: config.exporting(
                weights, folder / "export", beside=_usual_teacher(config, folder, weights)
            ),
            run=partial(_export, config, folder),
        ),
    ]


def _rounds_so_far(config: SlimConfig, folder: Path) -> int:
    drop = ScoreDrop.load(folder)
    if drop is None:
        return 1
    return len(drop.rounds) if drop.is_over else min(len(drop.rounds) + 1, config.rounds)


def round_stages(config: SlimConfig, folder: Path, number: int) -> list[Stage]:
    """Return the stages of a round, counted from 1."""
    place = folder / f"round{number}"
    return [
        Stage(
            name="sparse",
            folder=place / "sparse",
            script="train_sparsity.py",
            settings=lambda weights: config.sparse_training(
                weights, place / "sparse", is_first=weights == config.weights and not _starts_with_teacher(config)
            ),
            run=partial(_train_sparse, config, folder, number),
            is_shared=True,
            # last, not best: what is best by mAP may have been saved before the channels were at zero.
            network=lambda made: made / "weights/last.pt",
        ),
        Stage(
            name="prune",
            folder=place / "prune",
            script="prune.py",
            settings=lambda weights: config.pruning(
                weights, place / "prune", target=config.target, plan=_chosen(config, place / "sparse")
            ),
            run=partial(_prune, config, folder, number),
            network=lambda made: made / CHECKPOINT_NAME,
        ),
        Stage(
            name="finetune",
            folder=place / "finetune",
            script="finetune_pruned.py",
            settings=lambda weights: config.finetuning(
                weights, place / "finetune", teacher=config.teacher or _usual_teacher(config, folder, weights)
            ),
            run=partial(_finetune, config, folder, number),
            is_shared=True,
            network=best_checkpoint,
        ),
    ]


def run_stages(stages: Sequence[Stage], *, chosen: Sequence[StageName], weights: str) -> str:
    """Run the chosen stages that are not complete; a stage that does not run hands on what it was given.

    Args:
        stages: All stages in their order.
        chosen: Names of those to run.
        weights: Network that the first one starts from.

    Returns:
        The network that the last one leaves.
    """
    for stage in stages:
        # One process looks for all: another might see what the run has written meanwhile.
        is_complete = share(stage.is_complete)
        if not is_complete and stage.name not in chosen:
            continue
        if is_complete:
            LOGGER.info("%s is complete", stage.folder)
        else:
            LOGGER.info("stage %s", stage.folder)
            if stage.is_shared or this_process().is_main:
                stage.run(stage.settings(weights))
            wait_for_all()
        if stage.network is not None:
            weights = str(stage.network(stage.folder))
    return weights


def check_order(stages: Sequence[Stage], *, chosen: Sequence[StageName]) -> None:
    """Refuse a choice of stages that does not fit what is complete in the run folder.

    Raises:
        ConfigError: A chosen stage would come before a complete one, or one is begun and not chosen.
    """
    for position, stage in enumerate(stages):
        if stage.is_complete:
            continue
        later = [other.folder for other in stages[position + 1 :] if other.is_complete]
        if stage.name in chosen and later:
            raise ConfigError(
                f"--stages {stage.name}: {stage.folder} would come before {later[0]}, which is complete; begin a new "
                "run"
            )
        if stage.name not in chosen and stage.folder.exists():
            raise ConfigError(
                f"--stages {' '.join(chosen)}: {stage.folder} is begun and not complete; add {stage.name} to --stages"
            )


def _uncut(config: SlimConfig, folder: Path) -> str:
    """Return the network before any cut, by which targets are counted and fine-tunings taught."""
    weights = config.weights
    for stage in stages_of(config, folder)[:2]:  # dense and sparse
        if stage.network is not None and (stage.is_complete or stage.name in config.stages):
            weights = str(stage.network(stage.folder))
    return weights


def _usual_teacher(config: SlimConfig, folder: Path, weights: str) -> str:
    """Return the network before any cut and before channels faded, beside which exports are timed, too.

    Args:
        config: Settings of the run.
        folder: Run folder.
        weights: The network to teach or to export; where it is the same, "" is returned.
    """
    dense, uncut = stages_of(config, folder)[0], _uncut(config, folder)
    if config.is_auto and (dense.is_complete or dense.name in config.stages):
        uncut = str(best_checkpoint(dense.folder))
    elif _starts_with_teacher(config):
        uncut = config.weights
    return "" if uncut == weights else uncut


def _starts_with_teacher(config: SlimConfig) -> bool:
    """Return whether the given weights teach what fades: then all that follows has their anchors."""
    return config.is_auto and knows_classes(config)


def knows_classes(config: SlimConfig) -> bool:
    """Return whether the weights are of the network to train and have the classes of the data."""
    if not config.weights:
        return False
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    try:
        network = task.load(config.weights)
        if config.cfg:
            task.check_agrees(network, config.cfg, weights=config.weights)
    except (CheckpointError, PruningError):
        return False  # tensors without names, or another network, of which training takes what fits
    return class_order(network.names, task.class_names(config)) is not None


def _chosen(config: SlimConfig, sparse: Path) -> str:
    """Return the plan of the channels that a sparsity training in folder `sparse` chose; "" where the cut chooses."""
    is_trained = "sparse" in config.stages or (sparse / "result.json").exists()
    return str(sparse / PLAN_NAME) if config.is_auto and is_trained else ""


def _train_sparse(config: SlimConfig, folder: Path, number: int, settings: SparsityConfig) -> None:
    """Train sparse in a round, counted from 1; if channels are chosen first, those that the round is to cut."""
    if settings.is_auto:
        own = _of_round(config, folder, number, settings.weights) if this_process().is_main else {}
        settings = replace(settings, **share(own))
    train_stage(settings, run_sparsity_training)


def _prune(config: SlimConfig, folder: Path, number: int, settings: PruneConfig) -> None:
    """Cut what a round, counted from 1, is to cut."""
    if not settings.plan:
        settings = replace(settings, **_of_round(config, folder, number, settings.weights))
    run_pruning(settings)


def _finetune(config: SlimConfig, folder: Path, number: int, settings: FinetuneConfig) -> None:
    """Fine-tune in a round, counted from 1; the usual teacher is the network before the cuts of all rounds so far."""
    if number > 1 and settings.teacher and not config.teacher:
        settings = replace(settings, plan=share(_joint_plan(folder, number) if this_process().is_main else ""))
    train_stage(settings, run_finetuning)


def _joint_plan(folder: Path, number: int) -> str:
    """Write the plan that cuts at once what the rounds until this one have cut; "" if they removed bottlenecks."""
    joint, *later = [PruningPlan.load(folder / f"round{index + 1}/prune" / PLAN_NAME) for index in range(number)]
    path = folder / f"round{number}" / PLAN_NAME
    try:
        for plan in later:
            joint = joint.then(plan)
    except PruningError:
        return ""
    joint.save(path)
    return str(path)


def _of_round(config: SlimConfig, folder: Path, number: int, weights: str) -> dict[str, Any]:
    """Return what the cut of a round must reach; the whole run plans by one latency table.

    Args:
        config: Settings of the run.
        folder: Run folder.
        number: Index of the round, from 1.
        weights: Network that the stage starts from.
    """
    table = folder / LATENCY_NAME
    own: dict[str, Any] = {"latency_table": str(table)} if table.is_file() else {}
    if not config.target:
        return own
    weights = weights if number == 1 else _uncut(config, folder)
    task = task_of(data=config.data, weights=weights)
    uncut = task.load(weights)
    image_chw = task.image_chw(uncut, config.test_size)
    settings = replace(config.pruning(weights, folder, target=config.target), **own)
    latency = table_for(settings, task, uncut, image_chw=image_chw, weights=weights)
    target = target_of_round(config, uncut, latency, number=number, image_chw=image_chw)
    return {**own, "target": target}


def target_of_round(
    config: SlimConfig,
    uncut: Network,
    table: LatencyTable | None,
    *,
    number: int,
    image_chw: tuple[int, int, int],
) -> str:
    """Return what one round must reach, in MACs, parameters or ms; rounds cut by equal factors.

    Under `max_map_drop` no step is larger than `STEP`; rounds beyond the last step have its target.

    Args:
        config: Settings of the run, with a target.
        uncut: Network before any cut.
        table: Latency table, for a target in milliseconds.
        number: Index of the round, from 1.
        image_chw: Size of an image for which costs are counted.
    """
    target = parse_target(config.target)
    now = cost_of(uncut, target.quantity, table, image_chw=image_chw)
    left = min(1.0, target.absolute(now) / now)
    steps = config.rounds if config.max_map_drop is None else steps_towards(left)
    goal = now * left ** (min(number, steps) / steps)
    return absolute_text(target.quantity, goal)


def checked_target(config: SlimConfig, folder: Path, number: int, *, weights: str) -> str:
    """Return what a round, counted from 1, must reach.

    Raises:
        PruningError: No cut of `weights`, the network before the round, reaches it.
    """
    own = _of_round(config, folder, number, weights)
    task = task_of(data=config.data, weights=weights)
    network = task.load(weights)
    image_chw = task.image_chw(network, config.test_size)
    settings = replace(config.pruning(weights, folder, target=config.target), **own)
    table = table_for(settings, task, network, image_chw=image_chw, weights=weights)
    check_cut(settings, network, table, image_chw=image_chw)
    return str(own["target"])


def _export(config: SlimConfig, folder: Path, settings: ExportConfig) -> None:
    """Export the small network at the size that is validated; int8 learns from no more images than there are."""
    task = task_of(data=config.data, weights=settings.weights)
    network = task.load(settings.weights)
    image_chw = task.image_chw(network, config.test_size)
    settings = replace(
        settings, img_size=ExportConfig.img_size if "img_size" in task.ignored_later else image_chw[1:]
    )
    threads = torch.get_num_threads()
    try:
        if settings.int8:
            images = len(task.read_split(config, "train", network=network))
            settings = replace(settings, calib_images=min(settings.calib_images, images))
            settings = replace(settings, int8_trained=_trained_int8(config, folder / "quantize", settings))
        run_export(settings)
    finally:
        torch.set_num_threads(threads)  # the export and ncnn set it for the whole process


def _trained_int8(config: SlimConfig, folder: Path, settings: ExportConfig) -> str:
    """Train with the rounding of int8 where that loses more than `max_map_drop`; return the folder, or "" if not."""
    if config.max_map_drop is None:
        return ""
    if this_process().world_size > 1:
        LOGGER.warning("int8 is not trained by several processes here; quantize.py --qat-epochs does it")
        return ""
    own = config.quantising(settings, folder)
    is_begun = (folder / CONFIG_NAME).exists()
    if not (folder / "result.json").exists():
        run_quantization(replace(own, resume=str(folder)) if is_begun else own)
    return str(folder) if (folder / QAT_NAME).is_dir() else ""
