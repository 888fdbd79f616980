"""`--target ms=8` and `speedup=3`: the latency table that prune.py and slim.py plan by."""

from __future__ import annotations

from torch import nn

from commands.prune_config import PruneConfig
from deploy.latency.measure import Subject
from deploy.latency.tables import latency_table
from deploy.outputs.outputs import Source
from pruning.channels.graph import ChannelGraph
from pruning.selection.latency import Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from tasks.task import Network, Task

# The table of a run, in its folder.
LATENCY_NAME = "latency.json"


def table_for(
    config: PruneConfig, task: Task, network: Network, *, image_chw: tuple[int, int, int], weights: str
) -> LatencyTable | None:
    """Return the latency table that the settings ask for; None for a target that is no time.

    Args:
        config: Settings of the cut.
        task: Task of the network.
        network: Network to prune.
        image_chw: Size of the image that milliseconds are of.
        weights: File of the network; "" if it has none.

    Raises:
        ConfigError: The given table is of other conditions or lacks a layer, or none can be measured here.
    """
    if not config.is_timed:
        return None

    def source_of(model: nn.Module) -> Source:
        return task.source(network.with_model(model), path=weights)

    subject = Subject(model=network.model, image_chw=image_chw, trace_chw=network.trace_chw, source_of=source_of)
    conditions = Conditions(
        runtime=config.runtime, precision=config.precision, threads=config.threads, image_chw=image_chw
    )
    return latency_table(subject, conditions, path=config.latency_table)


def predicted_ms(network: Network, table: LatencyTable | None, *, image_chw: tuple[int, int, int]) -> float | None:
    """Return the time that a table predicts for a network; None without a table.

    Raises:
        ConfigError: The table lacks a layer of the network.
    """
    if table is None:
        return None
    graph = ChannelGraph.of(network.model, image_chw=network.trace_chw)
    return LatencyCost.of(network.model, graph, image_chw, table).milliseconds()
