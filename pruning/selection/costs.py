"""`Costs`: everything that a target can limit, as functions of the dropped channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.choices import CostQuantity
from pruning.importance.cost import ChannelCost, per_cost
from pruning.selection.allocation import Allocation, Allocator
from pruning.selection.latency import LatencyTable
from pruning.selection.latency_cost import LatencyCost
from pruning.selection.targets import Target
from utils.errors import ConfigError

_WORDS: dict[CostQuantity, str] = {"macs": "MACs", "params": "parameters", "ms": "ms"}
# Smallest savings that importance is divided by: one multiply-add or parameter, and a nanosecond.
_LEAST: dict[CostQuantity, float] = {"macs": 1.0, "params": 1.0, "ms": 1e-6}


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """Multiply-adds, parameters and, with a latency table, milliseconds of a network.

    Attributes:
        counted: Multiply-adds and parameters.
        timed: Milliseconds; None without a table.
    """

    counted: ChannelCost
    timed: LatencyCost | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        graph: ChannelGraph,
        image_chw: tuple[int, int, int],
        table: LatencyTable | None = None,
    ) -> Costs:
        """Count, and look up where there is a table.

        Args:
            model: Network that takes one batch of images; it is not changed.
            graph: Channels of the network.
            image_chw: Channels, height and width of the image.
            table: Times of its layers on a runtime.

        Raises:
            ConfigError: The table lacks a layer, or does not reach its widths.
        """
        timed = None if table is None else LatencyCost.of(model, graph, image_chw, table)
        return cls(counted=ChannelCost.of(model, graph, image_chw), timed=timed)

    def amount(self, quantity: CostQuantity, dropped: IntArray | None = None) -> float:
        """Return the cost of the network without these channel ids (n,).

        Raises:
            ConfigError: Milliseconds are wanted and there is no table.
        """
        if quantity == "ms":
            return self.latency.milliseconds(dropped)
        return self.counted.macs(dropped) if quantity == "macs" else self.counted.parameters(dropped)

    def weigh(self, importance: FloatArray, quantity: CostQuantity, *, power: float) -> FloatArray:
        """Divide importance (num_ids,) by what dropping each channel saves, to this power.

        Raises:
            ConfigError: Milliseconds are wanted and there is no table.
        """
        saved = self.latency.of_channels() if quantity == "ms" else self.counted.of_channels(quantity)
        return per_cost(importance, saved, power=power, least=_LEAST[quantity])

    @property
    def latency(self) -> LatencyCost:
        """Milliseconds by channel.

        Raises:
            ConfigError: There is no table.
        """
        if self.timed is None:
            raise ConfigError("a target in milliseconds needs a latency table; give --latency-table")
        return self.timed


def at_target(allocator: Allocator, costs: Costs, target: Target) -> Allocation:
    """Drop the fewest channels with which the network costs no more than the target.

    Raises:
        PruningError: The target cannot be reached.
    """
    quantity = target.quantity
    goal = target.absolute(costs.amount(quantity))
    return allocator.at_cost(lambda dropped: costs.amount(quantity, dropped), goal, what=_WORDS[quantity])


def uniform_share(allocator: Allocator, costs: Costs, target: Target) -> float:
    """Return the share of its channels that every layer may keep under the target; 0 if that cannot be reached."""
    quantity = target.quantity
    goal = target.absolute(costs.amount(quantity))
    return allocator.uniform_share(lambda dropped: costs.amount(quantity, dropped), goal)
