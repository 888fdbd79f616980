"""slim.py: from a data set to a small network, verified on the runtime that will serve it, in one run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from commands.slim_candidates import StartingPoints, settled, starting_points
from commands.slim_config import SlimConfig
from commands.slim_dry_run import show_plan
from commands.slim_report import SlimResult
from commands.slim_stages import Stage, check_order, checked_target, round_stages, run_stages, stages_of
from commands.slim_start import Start, start_of, uncut_stage, write_layers_to_time
from commands.train_result import best_checkpoint
from commands.train_sparsity_config import AUTO
from engine.training.distributed import process_group, share, this_process
from pruning.selection.score_drop import ScoreDrop
from reports import write_report
from tasks.choose import task_of
from utils.config.cli import config_from_values
from utils.device import select_device
from utils.errors import DataError, PruningError
from utils.storage.files import read_yaml
from utils.storage.run_folder import CONFIG_NAME, RunFolder, continued_by, resumed_folder

LOGGER = logging.getLogger(__name__)

# The stages of runs that began before there were others.
_FIRST_STAGES = ("sparse", "prune", "finetune")


def slim(config: SlimConfig) -> bool:
    """Run the stages, or with `dry_run` show them, or only write the `report` of a run or the `latency_layers`.

    Returns:
        Whether the exported network passed its verification, if one was exported.
    """
    if config.report:
        write_report(config.report)
        return True
    if config.dry_run or config.latency_layers:
        if this_process().is_main:
            _show(config) if config.dry_run else write_layers_to_time(config)
        return True
    result = run_slimming(config)
    return result is None or result.passed


def _show(config: SlimConfig) -> None:
    """Show the plan; under `--start auto`, what would be compared first."""
    if config.start == AUTO:
        starting_points(config).show()
    else:
        show_plan(start_of(config))


def run_slimming(config: SlimConfig) -> SlimResult | None:
    """Run all stages.

    Args:
        config: All settings; with `resume`, those of the resumed run count instead, but for `stages` and `device`,
            and its finished stages are not run again.

    Returns:
        The result; None on all but the first process.

    Raises:
        UserError: Anything about settings, weights or data that does not allow it; most is found before any training.
        KeyboardInterrupt: The user stopped the run; the message is the command that continues it.
    """
    process = this_process()
    if not process.is_main:
        logging.disable(logging.INFO)
    device = select_device(config.device, local_rank=process.local_rank)
    with process_group(process, device):
        config, folder = _resumed(config) if config.resume else _begun(config)
        with continued_by(f"python slim.py --resume {folder}"):
            config = settled(config, folder)
            weights = _run_line(config, folder)
            return _finish(config, folder, weights=weights) if process.is_main else None


def _begun(config: SlimConfig) -> tuple[SlimConfig, Path]:
    """Check the settings, and make the run folder; the stages to run are decided now and kept there."""
    start = starting_points(config) if config.start == AUTO else start_of(config)
    folder = Path(share(str(_new_folder(start)) if this_process().is_main else ""))
    LOGGER.info("run folder %s", folder)
    return start.config, folder


def _new_folder(start: Start | StartingPoints) -> Path:
    """Make the run folder; the settings, with which it can be resumed, are written last."""
    config = start.config
    run = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    start.save(run.path)
    run.write_config(config)
    return run.path


def _resumed(config: SlimConfig) -> tuple[SlimConfig, Path]:
    """Return the settings that a run began with, but for device and, where given, stages; and its folder."""
    folder = Path(share(str(resumed_folder(config.resume, config.project, script="slim"))))
    path = folder / CONFIG_NAME
    values = {"stages": _FIRST_STAGES, **read_yaml(path, what="configuration")}
    settings = replace(config_from_values(SlimConfig, values, where=str(path)), device=config.device)
    if config.stages:
        settings = replace(settings, stages=config.stages)
    check_order(stages_of(settings, folder), chosen=settings.stages)
    LOGGER.info("resuming %s", folder)
    if config.stages and this_process().is_main:
        RunFolder(path=folder).write_config(settings)
    return settings, folder


def _run_line(config: SlimConfig, folder: Path) -> str:
    """Run the stages that are not complete, and return the network to ship.

    Under `max_map_drop` rounds go on until the network has lost more than that of the dense one's score, and the last
    that has not is exported. What is decided is kept in the folder: a resumed run takes it from there.
    """
    if config.max_map_drop is None:
        return run_stages(stages_of(config, folder), chosen=config.stages, weights=config.weights)
    dense, *_, export = stages_of(config, folder)
    uncut = run_stages([dense], chosen=config.stages, weights=config.weights)
    drop = share(_begun_drop(config, folder, dense, uncut) if this_process().is_main else None)
    while drop is not None and not drop.is_over and "finetune" in config.stages:
        drop = _after_round(config, folder, drop, weights=_taken(config, folder, drop, uncut))
    if drop is not None:
        LOGGER.info("%s", drop.reason)
    return run_stages([export], chosen=config.stages, weights=_taken(config, folder, drop, uncut))


def _taken(config: SlimConfig, folder: Path, drop: ScoreDrop | None, uncut: str) -> str:
    """Return the network of the last round within the drop; the uncut one before there is any."""
    if drop is None or drop.taken is None:
        return uncut
    return str(best_checkpoint(round_stages(config, folder, drop.taken.number)[-1].folder))


def _begun_drop(config: SlimConfig, folder: Path, dense: Stage, uncut: str) -> ScoreDrop | None:
    """Read how far the rounds of a run are, or begin with the score of its dense network; None if none are asked for.

    Raises:
        DataError: The dense network has no score on val.
    """
    drop = ScoreDrop.load(folder)
    if drop is not None or "finetune" not in config.stages:
        return drop
    assert config.max_map_drop is not None
    metric = task_of(data=config.data, weights=uncut).columns.headline[-1]
    if not dense.is_complete:
        dense = uncut_stage(config, folder)
        if not dense.is_complete:
            dense.run(dense.settings(uncut))
    score = dense.result["metrics"][metric]
    if score is None:
        raise DataError(f"{config.data}: {uncut} has no score on val, by which --max-map-drop decides; label val")
    drop = ScoreDrop(metric=metric, allowed=config.max_map_drop, dense=score)
    drop.save(folder)
    return drop


def _after_round(config: SlimConfig, folder: Path, drop: ScoreDrop, *, weights: str) -> ScoreDrop:
    """Run the next round, from what the last one left, or end the rounds."""
    is_main, number = this_process().is_main, len(drop.rounds) + 1
    target, ended = share(_target_or_end(config, folder, drop, weights=weights) if is_main else ("", ""))
    if ended:
        drop = replace(drop, ended=ended)
    else:
        LOGGER.info("round %d, to %s", number, target)
        stages = round_stages(config, folder, number)
        run_stages(stages, chosen=config.stages, weights=weights)
        drop = drop.after(target, share(stages[-1].result["metrics"][drop.metric] if is_main else None))
    if is_main:
        drop.save(folder)
    return drop


def _target_or_end(config: SlimConfig, folder: Path, drop: ScoreDrop, *, weights: str) -> tuple[str, str]:
    """Return what the next round must reach, or why there is none."""
    number = len(drop.rounds) + 1
    if number > config.rounds:
        return "", f"all --rounds {config.rounds} are run"
    try:
        target = checked_target(config, folder, number, weights=weights)
    except PruningError as error:
        return "", str(error)
    if drop.rounds and drop.rounds[-1].target == target:
        return "", f"--target {config.target} is reached"
    return target, ""


def _finish(config: SlimConfig, folder: Path, *, weights: str) -> SlimResult:
    """Show and write what the stages have reached; all that is made of a finished run folder belongs here."""
    result = SlimResult.of(config, folder, stages_of(config, folder), weights=weights)
    RunFolder(path=folder).write_result(result.to_dict())
    LOGGER.info("%s", result.as_text())
    if result.exported and result.exported.warning:
        LOGGER.warning("%s", result.exported.warning)
    if result.stages:
        write_report(folder)
    return result
