"""The start of a run of slim.py: its network, data and stages, and the refusal of what a later stage would."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from commands.export import check_export
from commands.prune_config import PruneConfig
from commands.prune_latency import LATENCY_NAME, check_cut, table_for, write_layers
from commands.slim_config import STAGES, SlimConfig, StageName
from commands.slim_stages import Stage, knows_classes, stages_of, target_of_round
from commands.train_recipe import read_hyp
from deploy.formats import FORMATS
from engine.training.distributed import share, this_process
from pruning.features import Teaching
from pruning.selection.latency import LatencyTable
from reports.reading import UNCUT
from tasks.choose import task_of
from tasks.measuring import open_evaluator
from tasks.task import Data, Network, Task
from utils.config.hyp import Hyp
from utils.datasets.class_names import class_order
from utils.device import select_device
from utils.errors import ConfigError, DataError
from utils.storage.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

# What `--start auto` compares, in the run folder.
START_FOLDER = "start"


@dataclass(frozen=True, kw_only=True)
class Start:
    """All that a run begins with.

    Attributes:
        config: Settings, with the stages that are to run.
        task: Task of data and network.
        data: The two splits of the data.
        network: Network that the first stage trains or cuts.
        hyp: Hyper-parameters of the trainings.
        image_chw: Size of an image for which costs are counted.
        table: Latency table for a target in milliseconds; on the first process alone.
    """

    config: SlimConfig
    task: Task
    data: Data
    network: Network
    hyp: Hyp
    image_chw: tuple[int, int, int]
    table: LatencyTable | None

    def save(self, folder: Path) -> None:
        """Write what the stages need into the run folder."""
        if self.table is not None:
            self.table.save(folder / LATENCY_NAME)

    def pruning(self) -> PruneConfig:
        """Return the settings of a cut; the network is here, not in a file."""
        folder = Path(self.config.project) / self.config.name
        return self.config.pruning(str(folder), folder, target=self.config.target)


def start_of(config: SlimConfig) -> Start:
    """Build what the first stage starts from and refuse what a later one would, before any training.

    Raises:
        UserError: The folder contains a run; data, weights, runtime or teacher do not fit; the target cannot be
            reached.
    """
    start, is_main = prepared_start(config), this_process().is_main
    if "prune" in start.config.stages and is_main:
        start = with_table(start)
        check_reachable(start)
    return start


def prepared_start(config: SlimConfig) -> Start:
    """Build what the first stage starts from, as `start_of`, before anything is timed.

    Raises:
        UserError: As `start_of`, but for the target.
    """
    folder, is_main = Path(config.project) / config.name, this_process().is_main
    config = config.with_rounds()
    made = [folder / START_FOLDER, folder / UNCUT, *(stage.folder for stage in stages_of(config, folder))]
    if config.exist_ok and any(path.exists() for path in made):
        raise ConfigError(
            f"--exist-ok {folder}: it contains a run; --resume {folder} continues with it, or give a --name"
        )
    if config.teacher and not config.distill:
        LOGGER.warning("--teacher %s is not used without --distill, such as --distill 1", config.teacher)
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    config = replace(config, stages=share(stages_to_run(config, task)))
    if "export" in config.stages and is_main:
        _check_export(config, folder)
    if "sparse" in config.stages and "dense" not in config.stages:
        config.sparse_training(config.weights, folder, is_first=True)
    start = _start(config, task)
    if config.max_map_drop is not None and "finetune" in config.stages:
        _check_comparable(start)
    if config.teacher and config.distill and "finetune" in config.stages:
        task.distillation(config.teacher, start.network, Teaching(answers=config.distill))
    return start


def write_layers_to_time(config: SlimConfig) -> None:
    """Write the layers of what the first stage starts from for another device, see `--latency-layers`."""
    task = task_of(data=config.data, weights=config.weights, cfg=config.cfg)
    start = _start(replace(config, stages=stages_to_run(config, task)), task)
    write_layers(start.pruning(), task, start.network, image_chw=start.image_chw, weights="")


def uncut_stage(config: SlimConfig, folder: Path) -> Stage:
    """Return the step that measures the given weights where they are the dense network, with which rounds compare."""
    return Stage(
        name="dense",
        folder=folder / UNCUT,
        script="val.py",
        settings=lambda weights: weights,
        run=partial(_measure, config, folder),
        network=lambda made: Path(config.weights),
    )


def _measure(config: SlimConfig, folder: Path, weights: str) -> None:
    """Measure a network on val as a training does its best checkpoint."""
    task = task_of(data=config.data, weights=weights)
    network = task.load(weights)
    evaluator = open_evaluator(task, config, network, device=select_device(config.device))
    evaluation = evaluator.evaluate(network.model)
    run = RunFolder.create(project=folder, name=UNCUT, exist_ok=True)
    run.write_result({"metrics": evaluation.to_dict()})
    if not config.noplots:
        evaluation.save(run.path)
    LOGGER.info("%s before any cut, in float32:\n%s", weights, evaluation.as_text())


def stages_to_run(config: SlimConfig, task: Task) -> tuple[StageName, ...]:
    """Return the stages that are asked for; by default all, but a dense training only where it is needed."""
    if config.stages:
        return tuple(name for name in STAGES if name in config.stages)
    if not knows_classes(config):
        return STAGES
    LOGGER.info("%s has the classes of %s: no dense training is needed", config.weights, config.data)
    return STAGES[1:]


def _start(config: SlimConfig, task: Task) -> Start:
    """Read data and network: the one that a training makes of the weights, or the weights as they are."""
    hyp = read_hyp(config, task.recipe)
    if {"dense", "sparse"} & set(config.stages):
        data = task.read_data(config)
        network = task.make_network(config, data, hyp=hyp)
    elif not config.weights:
        raise ConfigError(f"--stages {' '.join(config.stages)}: nothing to start from; give --weights")
    else:
        network = task.load(config.weights)
        data = task.read_data(config, network=network)
        if class_order(network.names, data.names) is None:
            raise ConfigError(
                f"--data {config.data} has other classes than {config.weights}; add dense or sparse to --stages"
            )
    image_chw = task.image_chw(network, config.test_size)
    return Start(config=config, task=task, data=data, network=network, hyp=hyp, image_chw=image_chw, table=None)


def _check_comparable(start: Start) -> None:
    """Refuse a run that has no dense network, or no scores, to compare its rounds with."""
    config = start.config
    if "dense" not in config.stages and not knows_classes(config):
        raise ConfigError(
            f"--stages {' '.join(config.stages)}: --max-map-drop compares with the dense network; add dense, or give "
            "--weights that know the classes"
        )
    if not start.task.evaluation_set(config, start.data.val, network=start.network).is_labelled:
        raise DataError(f"{config.data}: val has no labels, by which --max-map-drop decides; give labelled data")


def _check_export(config: SlimConfig, folder: Path) -> None:
    """Refuse a runtime that the last stage could not export to here."""
    if FORMATS[config.runtime].needs_gpu and not torch.cuda.is_available():
        raise ConfigError(
            f"--runtime {config.runtime} exports on a machine with a GPU, and torch finds none here; give --stages "
            "without export, such as --stages dense sparse prune finetune, and run export.py there"
        )
    check_export(config.exporting("weights.pt", folder / "export"))


def with_table(start: Start, *, path: str = "") -> Start:
    """Return the start with its latency table: that of the file `path`, by default that of the settings."""
    cut = replace(start.pruning(), latency_table=path) if path else start.pruning()
    return replace(start, table=table_for(cut, start.task, start.network, image_chw=start.image_chw, weights=""))


def check_reachable(start: Start) -> None:
    """Refuse a run whose last cut cannot be made; under `max_map_drop`, whose first one cannot.

    Raises:
        UserError: As `check_cut`.
    """
    config, settings = start.config, start.pruning()
    if config.max_map_drop is not None:
        target = target_of_round(config, start.network, start.table, number=1, image_chw=start.image_chw)
        settings = replace(settings, target=target)
    check_cut(settings, start.network, start.table, image_chw=start.image_chw)
