"""Prune a little and train a little in rounds: Molchanov et al., ICLR 2017 (arXiv 1611.06440).

Each round ranks all channels anew by Taylor expansion, removes the least important ones of the whole network, and
makes a few updates. A longer training at a smaller rate follows at the end. The network is cut in every round, so
rounds get cheaper; nothing is masked.

Widths are rounded in every round: a layer keeps its width until enough of its channels rank low, and then drops to
the next allowed one. If widths were rounded only at the end, they could only be rounded down, since channels that
were cut do not come back.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from torch import nn

from engine.training.task import TrainingTask
from pruning.channels.graph import ChannelGraph
from pruning.channels.ids import FloatArray, IntArray
from pruning.choices import CostQuantity, Shortcuts
from pruning.importance.criteria import num_ids
from pruning.importance.taylor import taylor_importance
from pruning.selection.allocation import Allocator, ranks_among
from pruning.selection.candidates import free_ids, least_by_group
from pruning.selection.costs import Costs
from pruning.selection.latency import LatencyTable
from pruning.selection.rounding import Rounding
from pruning.surgery.cut import cut
from pruning.surgery.plan import importance_by_layer
from utils.errors import ConfigError

LOGGER = logging.getLogger(__name__)

Quantity = Literal["channels"] | CostQuantity
_WORDS: dict[Quantity, str] = {"channels": "channels", "macs": "MACs", "params": "parameters", "ms": "ms"}


@dataclass(frozen=True, kw_only=True)
class IterativeSettings:
    """How far to prune, and in which steps.

    Attributes:
        ratio: Share of `quantity` to remove, in (0, 1).
        quantity: Quantity that is counted: prunable channels, multiply-adds, parameters or milliseconds.
        step: Channels removed per round, at least 1; the well-known figure for a large network is 512.
        rank_batches: Batches that each ranking is measured on.
        updates: Optimiser steps after each round.
        lr: Learning rate of the steps after each round.
        final_updates: Optimiser steps at the end.
        final_lr: Learning rate of the steps at the end, usually 10 to 100 times smaller.
        shortcuts: "tied" prunes channels that additions join together, "skip" keeps them.
        min_channels: Fewest channels to keep of those that the same layers produce.
        rounding: Rounding of the number of channels that the same layers produce.
        protect: Patterns of paths of layers that are not pruned.
        least_widths: Fewest outputs of layers to keep, by path.
        cost_power: Power of a channel's cost in `quantity` by which its importance is divided.
        latency: Times of the layers on a runtime, for milliseconds.
        has_fast_widths: Whether widths are those that the latency table found fast, in place of `rounding`.
    """

    ratio: float
    quantity: Quantity = "channels"
    step: int = 512
    rank_batches: int = 8
    updates: int = 30
    lr: float = 1e-3
    final_updates: int = 300
    final_lr: float = 1e-4
    shortcuts: Shortcuts = "tied"
    min_channels: int = 1
    rounding: Rounding = field(default_factory=Rounding)
    protect: tuple[str, ...] = ()
    least_widths: Mapping[str, int] = field(default_factory=dict)
    cost_power: float = 0.0
    latency: LatencyTable | None = None
    has_fast_widths: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ConfigError(f"ratio {self.ratio}: expected a share to remove between 0 and 1, such as 0.5")
        for name in ("lr", "final_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} {getattr(self, name)}: expected a positive number, such as 0.001")
        for name, least in (("step", 1), ("rank_batches", 1), ("updates", 0), ("final_updates", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)}: expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Round:
    """State after a round; together with the network, all that is needed to continue.

    Attributes:
        number: Rounds so far; 0 before the first.
        now: Prunable channels, multiply-adds, parameters and, with a latency table, milliseconds.
        dense: The same before the first round.
        loss: Sum of the parts of the loss, mean over the updates of the round.
        kept: Indices of the kept output channels, counted in the network before the first round, by path of each
            convolution and linear layer.
        importance: Importance of each output of the same layers before the first round, in the last round that ranked
            it; None before.
    """

    number: int
    now: Mapping[Quantity, float]
    dense: Mapping[Quantity, float]
    loss: float
    kept: Mapping[str, tuple[int, ...]]
    importance: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Round:
        """Rebuild from the fields as plain data.

        Raises:
            KeyError: The field `kept` is missing.
            TypeError: Other fields are missing, or there are unknown ones.
        """
        kept = {name: tuple(indices) for name, indices in values["kept"].items()}
        importance = {name: tuple(given) for name, given in values.get("importance", {}).items()}
        return cls(**{**values, "kept": kept, "importance": importance})

    def as_text(self) -> str:
        """Return one line for people."""
        shares = ", ".join(
            f"{100 * self.now[name] / whole:.1f} % of {_WORDS[name]}" for name, whole in self.dense.items()
        )
        return f"round {self.number}: {shares} left, loss {self.loss:.4f}"


# Returns the amounts that remain of a network without some channels.
AmountsFn = Callable[[IntArray], Mapping[Quantity, float]]

# Called with each round and the network after it, for instance to write a checkpoint.
RoundCallback = Callable[[Round, nn.Module], None]


def prune_iteratively(
    model: nn.Module,
    task: TrainingTask,
    *,
    settings: IterativeSettings,
    image_chw: tuple[int, int, int],
    start: Round | None = None,
    on_round: RoundCallback | None = None,
) -> tuple[nn.Module, Round]:
    """Rank, remove and fine-tune until the network is small enough, then fine-tune for longer.

    Args:
        model: Network; it is not changed.
        task: Task that the network is trained for.
        settings: How far to prune, and in which steps.
        image_chw: Channels, height and width of an image that the network accepts; multiply-adds are counted for it.
        start: Round that produced `model`, to continue after it with the same result as without an interruption.
        on_round: Callback after every round.

    Returns:
        The pruned, trained network, and the state after the last round.

    Raises:
        PruningError: The network cannot become so small; the message says how small it can.
        TrainingError: The loss is NaN or infinite.
    """
    state = start or before_rounds(model, settings=settings, image_chw=image_chw)
    pruned = model
    began, first, goal = time.monotonic(), state.now[settings.quantity], _goal(state, settings)
    while state.now[settings.quantity] > goal:
        pruned, state = _next_round(pruned, task, state, settings=settings, image_chw=image_chw)
        share_done = (first - state.now[settings.quantity]) / (first - goal)
        # A round that leaves all channels says nothing about the time.
        minutes = (time.monotonic() - began) / 60 * (max(0.0, 1 / share_done - 1) if share_done > 0 else math.inf)
        LOGGER.info("%s, %.1f min left", state.as_text(), minutes)
        if on_round is not None:
            on_round(state, pruned)
    # The callback may have kept the network of the last round.
    pruned = copy.deepcopy(pruned)
    if settings.final_updates:
        loss = task.train_(pruned, updates=settings.final_updates, lr=settings.final_lr, number=state.number + 1)
        LOGGER.info("last %d updates at learning rate %g: loss %.4f", settings.final_updates, settings.final_lr, loss)
    return pruned, state


def before_rounds(model: nn.Module, *, settings: IterativeSettings, image_chw: tuple[int, int, int]) -> Round:
    """Return the state before the first round, after a check that the rounds can reach their goal.

    Raises:
        PruningError: The network cannot become so small; the message says how small it can.
    """
    graph = ChannelGraph.of(model, image_chw=image_chw)
    costs = Costs.of(model, graph, image_chw, settings.latency)
    dense = _amounts(graph, costs, np.empty(0, dtype=np.int64))
    kept = {layer.name: tuple(range(len(layer.output_ids))) for layer in graph.layers.values() if not layer.is_norm}
    unknown = {name: (None,) * len(indices) for name, indices in kept.items()}
    state = Round(number=0, now=dense, dense=dense, loss=0.0, kept=kept, importance=unknown)
    # How small it can get does not depend on which channels matter.
    allocator = _allocator(model, graph, np.zeros(num_ids(graph)), settings, costs)
    _fewest_for_goal(allocator, lambda dropped: _amounts(graph, costs, dropped), settings, _goal(state, settings))
    return state


def _goal(state: Round, settings: IterativeSettings) -> float:
    """Return the largest amount that is small enough, allowing for rounding of a share such as 113 / 226."""
    goal = state.dense[settings.quantity] * (1 - settings.ratio)
    return goal * (1 + 1e-9) if settings.quantity == "ms" else math.floor(goal + 1e-6)


def _next_round(
    model: nn.Module,
    task: TrainingTask,
    state: Round,
    *,
    settings: IterativeSettings,
    image_chw: tuple[int, int, int],
) -> tuple[nn.Module, Round]:
    """Prune one step and train a little; return the smaller network and the state after the round."""
    number = state.number + 1
    graph = ChannelGraph.of(model, image_chw=image_chw)
    costs = Costs.of(model, graph, image_chw, settings.latency)
    batches = islice(task.batches(number), settings.rank_batches)
    importance = taylor_importance(model, graph, batches, loss_fn=task.loss_of)
    if settings.quantity != "channels":
        importance = costs.weigh(importance, settings.quantity, power=settings.cost_power)
    allocator = _allocator(model, graph, importance, settings, costs)

    def amounts(dropped: IntArray) -> dict[Quantity, float]:
        return _amounts(graph, costs, dropped)

    dropped = _lowest(allocator, amounts, settings=settings, goal=_goal(state, settings))
    # Nothing is carried: Taylor expansion estimates what happens when a channel is zero.
    smaller = cut(model, graph, dropped, carry=False)
    loss = task.train_(smaller, updates=settings.updates, lr=settings.lr, number=number)
    return smaller, Round(
        number=number,
        now=amounts(dropped),
        dense=state.dense,
        loss=loss,
        kept=_still_kept(state.kept, graph, dropped),
        importance=_latest_importance(state, graph, importance),
    )


def _allocator(
    model: nn.Module, graph: ChannelGraph, importance: FloatArray, settings: IterativeSettings, costs: Costs
) -> Allocator:
    candidates = free_ids(model, graph, shortcuts=settings.shortcuts, protect=settings.protect)
    return Allocator(
        graph=graph,
        # Channels that never fire all have importance 0; ranks let a step take only some of them.
        importance=ranks_among(candidates, importance),
        candidates=candidates,
        rounding=settings.rounding,
        min_channels=settings.min_channels,
        least=least_by_group(graph, settings.least_widths),
        widths=costs.latency.fast_widths(graph.groups) if settings.has_fast_widths else {},
    )


def _lowest(allocator: Allocator, amounts: AmountsFn, *, settings: IterativeSettings, goal: float) -> IntArray:
    """Choose the channels to drop in a round: one step, more if rounding needs it, fewer if they reach the goal."""
    most = allocator.at(float("inf")).dropped
    step = min(settings.step, len(most))
    dropped = allocator.at_cost(lambda ids: -len(ids), -step, what="channels").dropped
    left, least = amounts(dropped)[settings.quantity], amounts(most)[settings.quantity]
    if left > goal >= least:
        return dropped
    return _fewest_for_goal(allocator, amounts, settings, goal)


def _fewest_for_goal(allocator: Allocator, amounts: AmountsFn, settings: IterativeSettings, goal: float) -> IntArray:
    quantity = settings.quantity
    return allocator.at_cost(lambda ids: amounts(ids)[quantity], goal, what=_WORDS[quantity]).dropped


def _still_kept(
    kept: Mapping[str, tuple[int, ...]], graph: ChannelGraph, dropped: IntArray
) -> dict[str, tuple[int, ...]]:
    """Return the outputs of each layer that were kept so far and are kept by this cut."""
    return {
        name: tuple(np.array(indices)[~np.isin(graph.layers[name].output_ids, dropped)].tolist())
        for name, indices in kept.items()
    }


def _latest_importance(
    state: Round, graph: ChannelGraph, importance: FloatArray
) -> dict[str, tuple[float | None, ...]]:
    """Return the importance of the outputs before the first round, with what a round has ranked anew."""
    found = {}
    ranked = importance_by_layer(graph, importance)
    for name, values in state.importance.items():
        latest = dict(zip(state.kept[name], ranked[name], strict=True))
        found[name] = tuple(latest.get(index, value) for index, value in enumerate(values))
    return found


def _amounts(graph: ChannelGraph, costs: Costs, dropped: IntArray) -> dict[Quantity, float]:
    counted: dict[Quantity, float] = {
        "channels": float(len(graph.prunable_ids) - len(dropped)),
        "macs": float(costs.amount("macs", dropped)),
        "params": float(costs.amount("params", dropped)),
    }
    return counted if costs.timed is None else {**counted, "ms": costs.amount("ms", dropped)}
