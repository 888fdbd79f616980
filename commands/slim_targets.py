"""What the rounds of slim.py must reach: targets as amounts, and whether a cut can reach them."""

from __future__ import annotations

from commands.prune_config import PruneConfig
from commands.slim_config import SlimConfig
from pruning.channels.graph import ChannelGraph
from pruning.choices import CostQuantity
from pruning.selection.costs import Costs
from pruning.selection.latency import LatencyTable
from pruning.selection.planner import Planner
from pruning.selection.targets import absolute_text, parse_target, steps_towards
from tasks.task import Network


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
