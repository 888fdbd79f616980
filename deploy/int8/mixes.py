"""Choose for each layer floating point or int8, so that a network takes no longer than a budget and loses least."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from deploy.choices import Precision
from utils.errors import ConfigError

# Returns the milliseconds of a network in which these layers are in floating point, and all others in int8.
MeasureMix: TypeAlias = Callable[[frozenset[str]], float]

# Files that are measured at most between the two ends.
_MOST_TRIALS = 8
# Files that are measured at most of what should be best by the times of layers.
_MOST_PACKINGS = 3
# Parts that time is divided into where layers are packed into it.
_STEPS = 1000


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Milliseconds of a layer alone, which contain the change to int8 before it and back behind it.

    Attributes:
        floats: In floating point.
        int8: In int8.
    """

    floats: float
    int8: float

    @property
    def extra(self) -> float:
        """Milliseconds that floating point takes more than int8; negative where int8 is slower."""
        return self.floats - self.int8


@dataclass(frozen=True, kw_only=True)
class MixTrial:
    """A network that was measured.

    Attributes:
        floats: Layers in floating point.
        ms: Milliseconds of a call.
    """

    floats: frozenset[str]
    ms: float


@dataclass(frozen=True, kw_only=True)
class MixedLayer:
    """A layer of a mix.

    Attributes:
        layer: Path of the layer.
        precision: Precision that it computes in.
        float_ms: Milliseconds of the layer alone in floating point; None if it cannot be in int8.
        int8_ms: The same in int8.
        share: Share in the loss of int8 of all layers; None if it cannot be in int8.
    """

    layer: str
    precision: Precision
    float_ms: float | None = None
    int8_ms: float | None = None
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Int8Mix:
    """The precision of each layer of an artefact, and the milliseconds of a call, all measured in turns.

    Attributes:
        runtime: Name of the runtime.
        floats: Precision of layers that are not in int8.
        budget_ms: Milliseconds that were allowed.
        ms: Milliseconds of the artefact, the fastest call.
        float_ms: The same with every layer that can be in int8 in floating point.
        int8_ms: The same with all of them in int8.
        loss_left: Share of the loss of int8 that is left, estimated from single layers.
        threads: Number of threads.
        layers: Every layer with weights, in execution order.
        trials: Milliseconds of the networks that the search measured, by the number of layers in int8, in order.
    """

    runtime: str
    floats: Precision
    budget_ms: float
    ms: float
    float_ms: float
    int8_ms: float
    loss_left: float
    threads: int
    layers: Sequence[MixedLayer]
    trials: Sequence[tuple[int, float]]

    @property
    def is_within(self) -> bool:
        """Whether the artefact is within the budget."""
        return self.ms <= self.budget_ms

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for result.json."""
        return {**asdict(self), "is_within": self.is_within}

    def as_text(self) -> str:
        """Return a line with the choice and the times."""
        num_int8 = sum(layer.precision == "int8" for layer in self.layers)
        return (
            f"{self.runtime} within ms={self.budget_ms:g}: {num_int8} of {len(self.layers)} layers in int8, the rest "
            f"in {self.floats}: {self.ms:.3g} ms; all in {self.floats} {self.float_ms:.3g}, all in int8 "
            f"{self.int8_ms:.3g} (threads: {self.threads}); {self.loss_left:.0%} of the loss of int8 is left"
        )


class MixSearch:
    """Search for the layers to leave in floating point.

    Layers that are faster in floating point stay there. The others follow in the order of what each loses in int8 for
    the time that it saves, and as many as the budget allows stay in floating point. How many these are, measurements
    of whole networks decide: neighbours share changes of precision, so the times of single layers do not add up.

        search = MixSearch(times, measure, budget_ms=12)
        search.check_reachable()
        best = search.best(shares)

    Args:
        times: Times of each layer that can be in int8, by its path.
        measure: Function that measures a network.
        budget_ms: Milliseconds that a call may take.
    """

    def __init__(self, times: Mapping[str, LayerTime], measure: MeasureMix, *, budget_ms: float) -> None:
        self._times, self._measure, self._budget = times, measure, budget_ms
        self._free = frozenset(name for name, time in times.items() if time.extra <= 0)
        self._measured: dict[frozenset[str], float] = {}

    @property
    def trials(self) -> tuple[MixTrial, ...]:
        """Every network that was measured, in order."""
        return tuple(MixTrial(floats=floats, ms=ms) for floats, ms in self._measured.items())

    def check_reachable(self) -> None:
        """Measure the network in int8, in floating point, and in the faster one of both by layer.

        Raises:
            ConfigError: All of them take longer than the budget; the message says the least that is reached.
        """
        for floats in (frozenset(), self._free, frozenset(self._times)):
            self._ms(floats)
        fastest = min(self.trials, key=lambda trial: trial.ms)
        if fastest.ms > self._budget:
            raise ConfigError(
                f"--int8-budget ms={self._budget:g}: the fastest mix takes {fastest.ms:.3g} ms here, with "
                f"{len(self._times) - len(fastest.floats)} of {len(self._times)} layers in int8; the nearest that "
                f"can be reached is ms={_rounded_up(fastest.ms):g}"
            )

    def best(self, shares: Mapping[str, float]) -> MixTrial:
        """Return the network within the budget, measured twice, that loses least.

        Args:
            shares: Share of each layer in the loss of int8, by its path; they are assumed to add up.
        """
        order = self._order(shares)
        low, high = self._ends(order)
        for count in range(_MOST_TRIALS):
            if high - low < 2:
                break
            # By the times of single layers, and, since these may mislead, in turns by halves.
            middle = (low + high) // 2 if count % 2 else self._expected(order, low, high)
            low, high = (middle, high) if self._prefix(order, middle) <= self._budget else (low, middle)
        self._pack(order, low, shares)
        return self._confirmed(shares)

    def _order(self, shares: Mapping[str, float]) -> tuple[str, ...]:
        """Return the layers in the order in which they are left in floating point."""

        def rank(name: str) -> tuple[bool, float]:
            price = shares[name] / self._times[name].extra if name not in self._free else shares[name]
            return name not in self._free, -price

        return tuple(sorted(self._times, key=rank))

    def _ends(self, order: tuple[str, ...]) -> tuple[int, int]:
        """Return how many layers in floating point fit into the budget, and how many do not, as far as measured."""
        known = (0, len(self._free), len(order))
        low = max((count for count in known if self._prefix(order, count) <= self._budget), default=0)
        return low, min((count for count in known if count > low), default=low)

    def _expected(self, order: tuple[str, ...], low: int, high: int) -> int:
        """Return how many layers should fit, with times of layers scaled to the two networks that are measured."""
        slow, fast = self._prefix(order, high), self._prefix(order, low)
        share = (self._budget - fast) / (slow - fast)
        wanted = share * sum(self._times[name].extra for name in order[low:high])
        reached, count = 0.0, low
        while count < high - 1 and reached + self._times[order[count]].extra <= wanted:
            reached += self._times[order[count]].extra
            count += 1
        return max(count, low + 1)

    def _pack(self, order: tuple[str, ...], low: int, shares: Mapping[str, float]) -> None:
        """Measure the choice that should lose least in the time of those that fit, or in less if it takes longer."""
        paid = [name for name in order if name not in self._free]
        kept = frozenset(order[:low])
        room = self._budget - self._ms(kept) + sum(self._times[name].extra for name in kept - self._free)
        for _ in range(_MOST_PACKINGS):
            extras = {name: self._times[name].extra for name in paid}
            picked = packed(extras, shares, room=room) | self._free
            if (over := self._ms(picked) - self._budget) <= 0:
                break
            room -= over

    def _confirmed(self, shares: Mapping[str, float]) -> MixTrial:
        """Return the best within the budget that is so again; the fastest of all where none is."""
        while fitting := [trial for trial in self.trials if trial.ms <= self._budget]:
            best = min(fitting, key=lambda trial: (loss_left(shares, trial.floats), trial.ms))
            # Of many networks near the budget, the one that was timed too short would be taken.
            again = self._measure(best.floats)
            if again <= self._budget:
                return best
            self._measured[best.floats] = again
        return min(self.trials, key=lambda trial: trial.ms)

    def _prefix(self, order: tuple[str, ...], count: int) -> float:
        return self._ms(frozenset(order[:count]))

    def _ms(self, floats: frozenset[str]) -> float:
        if floats not in self._measured:
            self._measured[floats] = self._measure(floats)
        return self._measured[floats]


def packed(costs: Mapping[str, float], values: Mapping[str, float], *, room: float) -> frozenset[str]:
    """Return the names of the greatest value together whose costs fit into the room, to a thousandth of it.

    Args:
        costs: Cost of each name, positive.
        values: Value of each name.
        room: Most of all costs together.
    """
    if room <= 0:
        return frozenset()
    best: list[tuple[float, frozenset[str]]] = [(0.0, frozenset())] * (_STEPS + 1)
    for name, cost in costs.items():
        # What takes the whole room fits, whatever the division leaves over.
        steps = math.ceil(cost / room * _STEPS - 1e-6)
        for size in range(_STEPS, steps - 1, -1):
            value, names = best[size - steps]
            if value + values[name] > best[size][0]:
                best[size] = (value + values[name], names | {name})
    return best[_STEPS][1]


def loss_left(shares: Mapping[str, float], floats: Collection[str]) -> float:
    """Return the share of the loss of int8 that is left with some layers in floating point."""
    return sum(share for name, share in shares.items() if name not in floats)


def _rounded_up(ms: float) -> float:
    """Return the next number of three digits, so that it can be given as a budget."""
    digits = 2 - math.floor(math.log10(ms))
    return float(round(math.ceil(ms * 10**digits) / 10**digits, max(digits, 0)))
