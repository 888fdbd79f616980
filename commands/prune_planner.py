"""The planner of a run of prune.py."""

from __future__ import annotations

from commands.prune_config import PruneConfig
from pruning.selection.latency import LatencyTable
from pruning.selection.planner import Planner
from tasks.short_training import importance_on_training_batches
from tasks.task import Network, Task
from utils.config.hyp import load_hyp
from utils.device import select_device


def planner_of(
    task: Task,
    dense: Network,
    config: PruneConfig,
    *,
    image_chw: tuple[int, int, int],
    table: LatencyTable | None = None,
) -> Planner:
    """Trace and rank a network as the settings say, on training batches if the criterion needs them.

    Args:
        task: Task of the network.
        dense: Network to prune.
        config: Settings of the run.
        image_chw: Size of an image that costs are counted for.
        table: Times of the layers, for a target in milliseconds.

    Raises:
        UserError: Network, settings or data do not allow it.
    """
    measure = importance_on_training_batches(
        config.criterion,
        task,
        config.training(),
        dense,
        hyp=load_hyp(config.hyp or task.recipe.hyp),
        device=select_device(config.device),
        num_batches=config.taylor_batches,
    )
    settings = config.plan_settings(image_chw, dense.trace_chw, table)
    return Planner.of(dense.model, settings, measure=measure)
