"""`--target ms=8` and `speedup=3`: the latency table that prune.py and slim.py plan by, its list of layers, costs."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from commands.prune_config import PruneConfig
from deploy.latency.layer_list import write_layer_list
from deploy.latency.networks import Subject
from deploy.latency.tables import latency_table
from deploy.outputs.outputs import Source
from pruning.channels.graph import ChannelGraph
from pruning.choices import CostQuantity
from pruning.selection.costs import Costs
from pruning.selection.latency import Conditions, LatencyTable
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.planner import Planner
from tasks.task import Network, Task

LOGGER = logging.getLogger(__name__)

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
    subject = _subject(task, network, image_chw=image_chw, weights=weights)
    return latency_table(subject, _conditions(config, image_chw), path=config.latency_table)


def write_layers(
    config: PruneConfig, task: Task, network: Network, *, image_chw: tuple[int, int, int], weights: str
) -> None:
    """Write the folder `--latency-layers`, with which another device measures the table; see `table_for`.

    Raises:
        ConfigError: The network cannot be exported, or the folder contains something else.
    """
    subject = _subject(task, network, image_chw=image_chw, weights=weights)
    folder = Path(config.latency_layers)
    write_layer_list(subject, _conditions(config, image_chw), folder)
    LOGGER.info(
        "layers to time in %s, and nothing else done; run time_layers with it on the device (deploy/cpp/README.md) "
        "and give the table that it writes as --latency-table",
        folder,
    )


def _subject(task: Task, network: Network, *, image_chw: tuple[int, int, int], weights: str) -> Subject:
    def source_of(model: nn.Module) -> Source:
        return task.source(network.with_model(model), path=weights)

    return Subject(model=network.model, image_chw=image_chw, trace_chw=network.trace_chw, source_of=source_of)


def _conditions(config: PruneConfig, image_chw: tuple[int, int, int]) -> Conditions:
    return Conditions(runtime=config.runtime, precision=config.precision, threads=config.threads, image_chw=image_chw)


def predicted_ms(network: Network, table: LatencyTable | None, *, image_chw: tuple[int, int, int]) -> float | None:
    """Return the time that a table predicts for a network; None without a table.

    Raises:
        ConfigError: The table lacks a layer of the network.
    """
    if table is None:
        return None
    graph = ChannelGraph.of(network.model, image_chw=network.trace_chw)
    return LatencyCost.of(network.model, graph, image_chw, table).milliseconds()


def check_cut(
    settings: PruneConfig, network: Network, table: LatencyTable | None, *, image_chw: tuple[int, int, int]
) -> None:
    """Refuse a cut that cannot be made; which layers it will empty is not known before scales fall.

    Raises:
        UserError: The widths fit no layer, or the target cannot be reached.
    """
    planner = Planner.of(network.model, settings.plan_settings(image_chw, network.trace_chw, table))
    if settings.target:
        planner.decide()


def cost_of(
    network: Network, quantity: CostQuantity, table: LatencyTable | None, *, image_chw: tuple[int, int, int]
) -> float:
    """Return the multiply-adds, parameters or, by a table, milliseconds of a network for one image."""
    graph = ChannelGraph.of(network.model, image_chw=network.trace_chw)
    return Costs.of(network.model, graph, image_chw, table).amount(quantity)
