"""`slim.py --start auto`: the networks that a run could start from, timed, trained for a few epochs and compared."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from commands.prune_latency import LATENCY_NAME, cost_of
from commands.slim_config import SlimConfig, StageName
from commands.slim_start import (
    START_FOLDER,
    Start,
    check_reachable,
    prepared_start,
    stages_to_run,
    with_table,
)
from commands.train import run_training, train_stage
from commands.train_sparsity_config import AUTO
from engine.training.distributed import share, this_process
from pruning.selection.latency import LatencyTable
from pruning.selection.starting import Candidate, Comparison, higher_size, lower_sizes
from pruning.selection.targets import absolute_text, parse_target
from tasks.choose import task_of
from tasks.task import Task
from utils.config.cli import command_line
from utils.errors import CheckpointError, ConfigError, PruningError
from utils.storage.files import write_json
from utils.storage.run_folder import RunFolder

LOGGER = logging.getLogger(__name__)

# The answer, in the run folder; what is compared, in the folder of the probes.
START_NAME, _CANDIDATES_NAME = "start.json", "candidates.json"
# Stages of a network that needs no cut.
_DENSE_STAGES: tuple[StageName, ...] = ("dense", "export")
# Settings that the recommended command leaves out: a preset is spelled out, and the others are for this run alone.
_NOT_REPEATED = ("preset", "probe_epochs", "exist_ok")


@dataclass(frozen=True, kw_only=True)
class StartingPoints:
    """All that a run begins with that does not know its network yet.

    Attributes:
        config: Settings of the run.
        comparison: Candidates with their costs, not yet probed.
        tables: Latency tables by name of the candidate, for a target in milliseconds; on the first process alone.
    """

    config: SlimConfig
    comparison: Comparison
    tables: dict[str, LatencyTable]

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs into its folder."""
        for name, table in self.tables.items():
            table.save(folder / START_FOLDER / f"{name}.json")
        write_json(folder / START_FOLDER / _CANDIDATES_NAME, asdict(self.comparison))

    def show(self) -> None:
        """Report what would be probed."""
        epochs = self.comparison.epochs
        LOGGER.info("%s\nprobes of --probe-epochs %d would decide", self.comparison.as_text(), epochs)
        LOGGER.info("dry run: nothing was written")


def starting_points(config: SlimConfig) -> StartingPoints:
    """Collect the candidates with their costs, and refuse what a later stage would, before any training.

    Raises:
        UserError: As `start_of`; or none of the candidates can reach the target.
    """
    task, firsts = task_of(data=config.data, weights=config.weights), []
    for weights in dict.fromkeys((config.weights, *config.candidates)):
        _check_task(config, task, weights)
        firsts.append(prepared_start(_plain(config, weights)))
    macs = [cost_of(first.network, "macs", None, image_chw=first.image_chw) for first in firsts]
    starts = []
    for first, own in zip(firsts, macs, strict=True):
        # With more pixels a smaller network costs what a larger one does, and can be cut in its place.
        sizes = _other_sizes(first, is_smaller=own < max(macs))
        starts += [first, *(prepared_start(replace(first.config, img_size=size)) for size in sizes)]
    return _measured(config, starts)


def _plain(config: SlimConfig, weights: str) -> SlimConfig:
    """Return the settings of a run that starts from these weights."""
    return replace(config, start="weights", candidates=(), weights=weights)


def _check_task(config: SlimConfig, task: Task, weights: str) -> None:
    """Refuse a candidate that is no file, or a network of another task than the first."""
    if not Path(weights).is_file():
        flag = "weights" if weights == config.weights else "candidates"
        raise CheckpointError(f"--{flag} {weights}: no such file; give a checkpoint such as yolov5n.pt")
    if weights != config.weights and (own := task_of(weights=weights)).name != task.name:
        raise ConfigError(f"--candidates {weights} is for {own.name}, --weights {config.weights} for {task.name}")


def _other_sizes(start: Start, *, is_smaller: bool) -> list[tuple[int, ...]]:
    """Return the image sizes to compare with the given one; none where the cost is the same or none is possible.

    Args:
        start: A network at the given size.
        is_smaller: Whether another network costs more, so that this one is compared at a higher size as well.
    """
    config, quantity = start.config, parse_target(start.config.target).quantity
    given = config.img_size or (config.train_size,)
    if quantity == "params" or "img_size" in start.task.ignored_later:
        return []
    if quantity == "ms" and config.latency_table:
        LOGGER.info("--latency-table %s is of one image size: no other is compared", config.latency_table)
        return []
    stride = start.task.scales(replace(config, multi_scale=False), start.network).step
    return [*([higher_size(given, stride=stride)] if is_smaller else []), *lower_sizes(given, stride=stride)]


def _measured(config: SlimConfig, starts: list[Start]) -> StartingPoints:
    """Count or time each network; drop those that cannot be cut to the target."""
    target = parse_target(config.target)
    costs, tables, limit = _costs(config, starts) if this_process().is_main else ({}, {}, 0.0)
    costs, limit = share((costs, limit))
    candidates = [
        Candidate(
            name=name,
            weights=start.config.weights,
            img_size=start.config.img_size or (start.config.train_size,),
            cost=costs[name],
        )
        for name, start in _named(starts).items()
        if name in costs
    ]
    comparison = Comparison(
        quantity=target.quantity,
        limit=limit,
        metric=starts[0].task.columns.headline[-1],
        epochs=config.probe_epochs,
        candidates=candidates,
    )
    return StartingPoints(config=config, comparison=comparison, tables=tables)


def _named(starts: list[Start]) -> dict[str, Start]:
    """Return the starts by a name that is a name of files."""
    return {
        f"{index}_{Path(start.config.weights).stem}_{start.config.test_size}": start
        for index, start in enumerate(starts, 1)
    }


def _costs(config: SlimConfig, starts: list[Start]) -> tuple[dict[str, float], dict[str, LatencyTable], float]:
    """Return costs and tables by name of what can reach the target, and the target itself.

    A share of a cost is one of the first network at the given size.

    Raises:
        PruningError: None can reach the target.
    """
    target, limit = parse_target(config.target), 0.0
    costs: dict[str, float] = {}
    tables: dict[str, LatencyTable] = {}
    refusals: list[PruningError] = []
    with TemporaryDirectory() as place:
        for name, start in _named(starts).items():
            # Networks of one size share a table: a smaller one has the same layers, of fewer channels.
            file = Path(place) / f"{'x'.join(map(str, start.image_chw))}.json"
            timed = with_table(start, path=str(file) if file.is_file() else "")
            if timed.table is not None:
                timed.table.save(file)
            cost = cost_of(timed.network, target.quantity, timed.table, image_chw=timed.image_chw)
            limit = limit or target.absolute(cost)
            absolute = replace(timed, config=replace(timed.config, target=absolute_text(target.quantity, limit)))
            try:
                if cost > limit:
                    check_reachable(absolute)
            except PruningError as error:
                refusals.append(error)
                LOGGER.info("%s at %d px is left out: %s", start.config.weights, start.config.test_size, error)
                continue
            costs[name] = cost
            if timed.table is not None:
                tables[name] = timed.table
    if not costs:
        raise refusals[0]
    return costs, tables, limit


def settled(config: SlimConfig, folder: Path) -> SlimConfig:
    """Return the settings of the run from the network that the probes recommend; those of another run as they are.

    Probes that are complete are not run again. The settings are kept in the run folder, and are from then on those
    of a run that was given the network.

    Args:
        config: Settings of the run.
        folder: Run folder.
    """
    if config.start != AUTO:
        return config
    comparison = _read(folder)
    LOGGER.info("comparing %d networks to start from\n%s", len(comparison.candidates), comparison.as_text())
    probed = [replace(own, score=_probe(config, folder, own, comparison)) for own in comparison.candidates]
    comparison = replace(comparison, candidates=probed)
    LOGGER.info("%s", comparison.as_text())
    if not any(own.score for own in probed):
        LOGGER.warning("no candidate has learnt anything in %d epochs; give more --probe-epochs", comparison.epochs)
    best = comparison.recommended
    plain = replace(_plain(config, best.weights), img_size=best.img_size, target=comparison.target)
    needed = stages_to_run(plain, task_of(data=plain.data, weights=plain.weights))
    stages = _DENSE_STAGES if comparison.is_dense(best) else share(needed)
    config = replace(plain, stages=stages)
    alone = config if comparison.is_dense(best) else plain
    command = command_line("slim.py", alone, without=_NOT_REPEATED)
    LOGGER.info("recommended: %s\nthis run goes on with it; the same by hand:\n%s", comparison.reason, command)
    if this_process().is_main:
        write_json(folder / START_NAME, {**comparison.to_dict(), "stages": list(stages), "command": command})
        table = folder / START_FOLDER / f"{best.name}.json"
        if table.is_file():
            LatencyTable.load(table).save(folder / LATENCY_NAME)
        RunFolder(path=folder).write_config(config)
    return config


def _read(folder: Path) -> Comparison:
    """Read what is to be compared, as `StartingPoints.save` wrote it."""
    values = json.loads((folder / START_FOLDER / _CANDIDATES_NAME).read_text(encoding="utf-8"))
    rows = values.pop("candidates")
    candidates = [Candidate(**{**row, "img_size": tuple(row["img_size"])}) for row in rows]
    return Comparison(**values, candidates=candidates)


def _probe(config: SlimConfig, folder: Path, candidate: Candidate, comparison: Comparison) -> float:
    """Train a candidate for a few epochs, or continue with that, and return its score on val."""
    place = folder / START_FOLDER / candidate.name
    made = train_stage(config.probing(candidate.weights, place, img_size=candidate.img_size), run_training)
    score = 0.0
    if this_process().is_main:
        score = json.loads((made / "result.json").read_text(encoding="utf-8"))["metrics"][comparison.metric] or 0.0
    return float(share(score))


def recommendation(folder: Path) -> dict[str, Any] | None:
    """Return which network a run goes on with, why, and the command for it alone; None if there was no comparison.

    Args:
        folder: Run folder.
    """
    path = folder / START_NAME
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    best = next(own for own in values["candidates"] if own["name"] == values["recommended"])
    own = {name: best[name] for name in ("weights", "img_size", "cut_to")}
    return {**own, "reason": values["reason"], "command": values.get("command", "")}  # runs of before have none


def compared(config: SlimConfig, folder: Path) -> list[dict[str, Any]]:
    """Return the networks that a run was chosen among as rows of its result.json, which the report plots.

    Args:
        config: Settings of the run.
        folder: Run folder; without `START_NAME` in it there are none.
    """
    path = folder / START_NAME
    if not path.is_file():
        return []
    values = json.loads(path.read_text(encoding="utf-8"))
    timing = {"runtime": config.runtime, "precision": config.precision, "threads": config.threads}
    rows = []
    for own in values["candidates"]:
        name = f"{Path(own['weights']).stem} {own['img_size'][-1]} px, {values['probe_epochs']} epochs"
        row = {"name": name, "score": own["score"], "weights": own["weights"], "img_size": own["img_size"]}
        cost = {"milliseconds": own["cost"], "is_predicted": True, **timing} if values["quantity"] == "ms" else {}
        rows.append({**row, values["quantity"]: own["cost"], **cost})
    return rows
