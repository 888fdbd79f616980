"""All stages in one run: train sparse, prune, fine-tune, and that several times towards a target."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from commands.finetune import run_finetuning
from commands.prune import CHECKPOINT_NAME, run_pruning
from commands.prune_config import PruneConfig
from commands.prune_latency import LATENCY_NAME, table_for, write_layers
from commands.slim_config import SlimConfig
from commands.slim_report import FINETUNE, PRUNE, SPARSE, StageResult, rows_of, slim_table
from commands.train_config import TrainConfig
from commands.train_hyp import read_hyp
from commands.train_result import TrainResult, best_checkpoint
from commands.train_sparsity import run_sparsity_training
from engine.training.distributed import process_group, share, this_process, wait_for_all
from pruning.channels.graph import ChannelGraph
from pruning.selection.costs import Costs
from pruning.selection.latency import LatencyTable
from pruning.selection.planner import Planner
from pruning.selection.targets import parse_target
from reports import write_report
from tasks.choose import task_of
from tasks.task import Network, Task
from utils.config.cli import RESUME_LATEST, config_from_values
from utils.device import select_device
from utils.errors import ConfigError
from utils.storage.files import read_yaml
from utils.storage.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

_Training = TypeVar("_Training", bound=TrainConfig)


def run_slimming(config: SlimConfig) -> list[StageResult]:
    """Run all stages.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead. Its finished stages are not run
            again.

    Returns:
        A row per stage; empty on all but the first process, and where only a report or a list of layers is written.

    Raises:
        UserError: Anything about settings, weights or data that does not allow it; most is found before any training.
    """
    if config.report:
        write_report(config.report)
        return []
    process = this_process()
    if not process.is_main:
        logging.disable(logging.INFO)
    device = select_device(config.device, local_rank=process.local_rank)
    with process_group(process, device):
        if config.latency_layers:
            _write_layers(config)
            return []
        if config.resume:
            folder = _resumed_folder(config)
            config = _settings_of(folder, device=config.device)
            LOGGER.info("resuming %s", folder)
        else:
            table = _check(config)
            folder = Path(share(str(RunFolder.begin(config).path) if process.is_main else ""))
            if table is not None:
                table.save(folder / LATENCY_NAME)
            LOGGER.info("run folder %s", folder)
        weights = config.weights
        for number in range(1, config.rounds + 1):
            weights = _run_round(config, folder, number=number, weights=weights)
        return _finish(config, folder, weights=weights) if process.is_main else []


def train_stage(config: _Training, run: Callable[[_Training], TrainResult | None]) -> Path:
    """Run a training, or continue with a killed one, or do nothing where it is complete; returns its folder."""
    folder = Path(config.project) / config.name
    last = folder / "weights/last.pt"
    # One process looks for all: another might see what the run has written meanwhile.
    is_complete, is_begun = share(((folder / "result.json").exists(), last.exists()))
    if is_complete:
        LOGGER.info("%s is complete", folder)
    else:
        run(replace(config, resume=str(last)) if is_begun else config)
    wait_for_all()
    return folder


def _write_layers(config: SlimConfig) -> None:
    """Write the layers of what the first stage trains for another device, see `--latency-layers`."""
    if this_process().is_main:
        task, network, pruning = _begin(config, Path(config.project))
        image_chw = task.image_chw(network, pruning.img_size)
        write_layers(pruning, task, network, image_chw=image_chw, weights="")


def _begin(config: SlimConfig, folder: Path) -> tuple[Task, Network, PruneConfig]:
    """Build what the first stage trains, and the settings of a cut of it."""
    task = _task(config)
    network = task.make_network(config, task.read_data(config), hyp=read_hyp(config, task.recipe))
    return task, network, config.pruning(str(folder), folder, target=config.target)  # the network is in no file


def _check(config: SlimConfig) -> LatencyTable | None:
    """Build what the first stage trains and refuse what a later one would, before any training.

    Returns:
        The latency table for a target in milliseconds, on the first process.

    Raises:
        UserError: The folder contains a run; data, weights or teacher do not fit; the target cannot be reached.
    """
    folder = Path(config.project) / config.name
    if config.exist_ok and any(folder.glob("round*")):
        raise ConfigError(
            f"--exist-ok {folder}: it contains a run; --resume {folder} continues with it, or give a --name"
        )
    if config.teacher and not config.distill:
        LOGGER.warning("--teacher %s is not used without --distill, such as --distill 1", config.teacher)
    task, network, pruning = _begin(config, folder)
    image_chw = task.image_chw(network, pruning.img_size)
    is_main = this_process().is_main
    table = table_for(pruning, task, network, image_chw=image_chw, weights="") if is_main else None
    if is_main:
        planner = Planner.of(network.model, pruning.plan_settings(image_chw, network.trace_chw, table))
    if config.target and is_main:
        planner.decide()  # refuses what cannot be reached; which layers it will empty is not known before scales fall
    if config.teacher and config.distill:
        task.distillation(config.teacher, network, strength=config.distill)
    return table


def _task(config: SlimConfig) -> Task:
    return task_of(data=config.data, weights=config.weights, cfg=config.cfg)


def _resumed_folder(config: SlimConfig) -> Path:
    """Return the run folder that `--resume` means."""
    if config.resume == RESUME_LATEST:
        found = sorted(Path(config.project).glob("*/opt.yaml"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise ConfigError(f"--resume: no run in {config.project}; give the folder of one")
        return found[-1].parent
    folder = Path(config.resume)
    if not (folder / "opt.yaml").exists():
        raise ConfigError(f"--resume {folder}: no folder of a run of slim.py; give one such as runs/slim/exp")
    return folder


def _settings_of(folder: Path, *, device: str) -> SlimConfig:
    """Those a run began with, but for the device."""
    path = folder / "opt.yaml"
    values = read_yaml(path, what="configuration")
    return replace(config_from_values(SlimConfig, values, where=str(path)), device=device)


def _run_round(config: SlimConfig, folder: Path, *, number: int, weights: str) -> str:
    """Train `weights` sparse, prune, fine-tune; returns the checkpoint."""
    LOGGER.info("round %d of %d", number, config.rounds)
    place, first = folder / f"round{number}", folder / "round1" / SPARSE
    train_stage(
        config.sparse_training(weights, place / SPARSE, is_first=number == 1),
        run_sparsity_training,
    )
    # last, not best: what is best by mAP may have been saved before the channels were at zero.
    dense = first / "weights/last.pt"
    if this_process().is_main and not (place / PRUNE / "result.json").exists():
        cut = config.pruning(str(place / SPARSE / "weights/last.pt"), place / PRUNE, target=config.target)
        table = folder / LATENCY_NAME
        if table.is_file():
            cut = replace(cut, latency_table=str(table))
        run_pruning(replace(cut, target=_target_of_round(config, cut, dense, number=number)))
    wait_for_all()
    teacher = config.teacher or str(dense)
    pruned = str(place / PRUNE / CHECKPOINT_NAME)
    tuned = train_stage(config.finetuning(pruned, place / FINETUNE, teacher=teacher), run_finetuning)
    return str(best_checkpoint(tuned))


def _target_of_round(config: SlimConfig, cut: PruneConfig, dense: Path, *, number: int) -> str:
    """Return what one round must reach, in MACs, parameters or ms; empty where rounds cut by percent.

    Args:
        config: Settings of the run.
        cut: Settings of the cut.
        dense: The network before any cut.
        number: Index of the round, from 1.
    """
    if not config.target:
        return ""
    target, task = parse_target(config.target), _task(config)
    network = task.load(dense)
    image_chw = task.image_chw(network, config.test_size)
    table = table_for(cut, task, network, image_chw=image_chw, weights=str(dense))
    graph = ChannelGraph.of(network.model, image_chw=network.trace_chw)
    now = Costs.of(network.model, graph, image_chw, table).amount(target.quantity)
    goal = now * min(1.0, target.absolute(now) / now) ** (number / config.rounds)
    return f"ms={goal:.6g}" if target.quantity == "ms" else f"{target.quantity}={goal:.0f}"


def _finish(config: SlimConfig, folder: Path, *, weights: str) -> list[StageResult]:
    """Show and write the table."""
    names = _task(config).columns.headline
    rows = [row for number in range(1, config.rounds + 1) for row in rows_of(folder / f"round{number}", names)]
    RunFolder(path=folder).write_result({"stages": [row.to_dict() for row in rows], "weights": weights})
    LOGGER.info("%s\nthe small network: %s\nresults in %s", slim_table(rows), weights, folder)
    write_report(folder)
    return rows
