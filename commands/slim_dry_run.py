"""`slim.py --dry-run`: the stages with their settings and estimated minutes, and what the cuts would leave."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands.finetune_config import FinetuneConfig
from commands.prune_config import PruneConfig
from commands.prune_latency import predicted_ms
from commands.slim_probe import Pace, probe
from commands.slim_stages import stages_of, target_of_round
from commands.slim_start import Start
from commands.train_config import TrainConfig
from pruning.selection.planner import Planner
from pruning.surgery.cut import cut
from pruning.surgery.report import NetworkSize, SurgeryReport
from tasks.task import Network
from utils.config.cli import command_line
from utils.device import select_device
from utils.errors import PruningError

LOGGER = logging.getLogger(__name__)

# Settings that say where a stage reads and writes, which follows from its place among the others.
_PLACES = ("weights", "output", "project", "name", "exist_ok")
# How often a cut and an export measure a validation set: the network before and after.
_MEASURED = 2


@dataclass(frozen=True, kw_only=True)
class PlannedCut:
    """A cut of the network as it is now; which channels it takes is known only after sparse training.

    Attributes:
        settings: Settings of the cut, with what its round must reach.
        network: Network after it.
        report: Sizes before and after it.
    """

    settings: PruneConfig
    network: Network
    report: SurgeryReport

    def as_text(self) -> str:
        """Return the sizes that are left, and before."""
        before, after = self.report.before, self.report.after
        parts = [
            f"{after.parameters:,d} of {before.parameters:,d} parameters",
            f"{after.macs / 1e9:.3f} of {before.macs / 1e9:.3f} G MACs",
        ]
        if after.milliseconds is not None and before.milliseconds is not None:
            parts.append(f"{after.milliseconds:.2f} of {before.milliseconds:.2f} ms")
        return ", ".join(parts)


def show_plan(start: Start) -> None:
    """Report each stage with its settings, minutes and, for a cut, what it leaves; nothing is written."""
    config = start.config
    folder = Path(config.project) / config.name
    LOGGER.info("training and validating a few batches of each size of the network")
    dense = _pace(start, start.network)
    pace, lines, total, weights = dense, [], 0.0, config.weights
    cuts, end = planned_cuts(start) if "prune" in config.stages else ([], "")
    rounds, planned_ones = len(cuts) or None, iter(cuts)
    for stage in stages_of(config, folder, rounds=rounds):
        if stage.name not in config.stages:
            continue
        settings, leaves = stage.settings(weights), []
        minutes = _minutes(start, settings, pace=pace, teacher=dense)
        total += minutes
        if stage.network is not None:
            weights = str(stage.network(stage.folder))
        if stage.name == "prune":
            planned = next(planned_ones)
            settings = settings if settings.plan else planned.settings
            leaves = [f"{'':<27} leaves {planned.as_text()}"]
            pace = _pace(start, planned.network)
        command = command_line(stage.script, settings, without=_PLACES)
        lines += [f"{stage.folder.relative_to(folder).as_posix():<18} {minutes:7.1f}  {command}", *leaves]
    lines += [end] if end else []
    LOGGER.info(
        "%s\n%s\n%s %.0f minutes in all on this machine\ndry run: nothing was written",
        f"{'stage':<18} {'minutes':>7}  the same by hand, each from what the one before leaves",
        "\n".join(lines),
        "at most" if end else "about",
        total,
    )


def planned_cuts(start: Start) -> tuple[list[PlannedCut], str]:
    """Cut the network as all rounds would, each what the one before leaves.

    Returns:
        The cuts; and under `max_map_drop`, when rounds end: those after the last that can be tried are left out.
    """
    config, network = start.config, start.network
    cuts: list[PlannedCut] = []
    end = f"all --rounds {config.rounds} are run"
    for number in range(1, config.rounds + 1):
        try:
            planned = planned_cut(start, network, number=number)
        except PruningError as error:
            if config.max_map_drop is None or not cuts:
                raise
            end = str(error)
            break
        if config.max_map_drop is not None and cuts and planned.settings.target == cuts[-1].settings.target:
            end = f"--target {config.target} is reached"
            break
        cuts.append(planned)
        network = planned.network
    if config.max_map_drop is None:
        return cuts, ""
    allowed = f"more than {config.max_map_drop:g} of the dense network's score is lost"
    return cuts, f"rounds go on until {allowed}, at most so far: {end}"


def planned_cut(start: Start, network: Network, *, number: int) -> PlannedCut:
    """Cut the network as a round, counted from 1, would.

    Args:
        start: Network, data and settings of the run.
        network: Network before that round; not changed.
        number: Index of the round.
    """
    config, settings = start.config, start.pruning()
    if config.target:
        target = target_of_round(config, start.network, start.table, number=number, image_chw=start.image_chw)
        settings = replace(settings, target=target)
    planner = Planner.of(network.model, settings.plan_settings(start.image_chw, network.trace_chw, start.table))
    allocation = planner.decide()
    model = cut(planner.model, planner.graph, allocation.dropped, carry=settings.constants)
    after = network.with_model(model)
    return PlannedCut(
        settings=settings,
        network=after,
        report=SurgeryReport(before=_size(start, network), after=_size(start, after)),
    )


def _size(start: Start, network: Network) -> NetworkSize:
    milliseconds = predicted_ms(network, start.table, image_chw=start.image_chw)
    return NetworkSize.of(network.model, start.image_chw, milliseconds=milliseconds)


def _pace(start: Start, network: Network) -> Pace:
    device = select_device(start.config.device)
    return probe(start.task, start.config, network, start.data, hyp=start.hyp, device=device)


def _minutes(start: Start, settings: Any, *, pace: Pace, teacher: Pace) -> float:
    """Return the estimated minutes of a stage.

    Args:
        start: Network, data and settings of the run.
        settings: Settings of the stage.
        pace: Pace of the network that the stage starts from.
        teacher: Pace of the network before any cut.
    """
    images = len(start.data.train), len(start.data.val)
    if not isinstance(settings, TrainConfig):
        return _MEASURED * images[1] * pace.validation / 60
    is_taught = isinstance(settings, FinetuneConfig) and bool(settings.teacher)
    return pace.minutes(epochs=settings.epochs, images=images, teacher=teacher if is_taught else None)
