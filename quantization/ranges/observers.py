"""Observers that determine the ranges of activations on calibration images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantization.lowering.graph import INPUT, Graph
from quantization.program.program import Affine
from quantization.ranges.affine import affine_of_range, within
from quantization.ranges.config import Observer, QuantConfig
from utils.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
Range: TypeAlias = tuple[float, float]

_MOST_BINS = 4096
# Candidate ends of a range in a search, as shares of the extreme.
_SHARES: list[float] = np.linspace(0.02, 1.0, 99).tolist()


class RangeObserver:
    """Records the extremes and a histogram of all values of a layer, batch after batch.

    Bin i counts values in [i * width, (i + 1) * width), so that zero is always an edge, and doubling the width merges
    pairs of bins exactly: the histogram grows without knowing the range beforehand.

    Args:
        name: Name of the layer, for messages.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high = math.inf, -math.inf
        self._width = 0.0
        self._first = 0
        self._counts: Floats = np.zeros(0)
        self._num_zeros = 0.0

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add the values of a tensor of any shape.

        Raises:
            DataError: A value is NaN or infinite.
        """
        values = x.detach().flatten().float()
        if not len(values):
            return
        low, high = (float(end) for end in torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise DataError(
                f"{self.name}: calibration images lead to NaN or infinite values here; "
                "check the images and the network's weights"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        num_zeros = len(values) - int(values.count_nonzero())
        self._num_zeros += num_zeros
        if num_zeros < len(values):
            self._add(values, low, high)
            # Zeros are counted separately, so they are subtracted from the bin that starts at zero.
            self._counts[-self._first] -= num_zeros

    def histogram(self) -> tuple[Floats, Floats]:
        """Return the centres and counts of the bins in order, with a separate entry for zero.

        Raises:
            DataError: Nothing was observed.
        """
        if self.low > self.high:
            raise DataError(f"{self.name}: there were no calibration images; give at least one")
        centres = (np.arange(len(self._counts)) + self._first + 0.5) * self._width
        at = int(np.searchsorted(centres, 0.0))
        return np.insert(centres, at, 0.0), np.insert(self._counts, at, self._num_zeros)

    def range(self, observer: Observer, *, bits: int, percentile: float, symmetric: bool) -> Range:
        """Determine both ends of the range to quantise, as `QuantConfig.observer` describes.

        Raises:
            DataError: Nothing was observed.
        """
        centres, counts = self.histogram()
        extremes = (min(self.low, 0.0), max(self.high, 0.0))
        if observer == "percentile":
            return _percentile_range(centres, counts, extremes, percentile)
        if observer == "minmax" or extremes == (0.0, 0.0):
            return extremes
        cost = _squared_error if observer == "mse" else _divergence
        return _searched(extremes, lambda ends: cost(centres, counts, ends, bits, symmetric))

    def _add(self, values: Tensor, low: float, high: float) -> None:
        """Add values (N,), which are between `low` and `high`, to the histogram."""
        if not self._width:
            # Not below the smallest float32 numbers, so that indices of later bins fit in an int.
            self._width = max(max(-low, high) / (_MOST_BINS // 2), 1e-30)
            self._counts = np.zeros(1)  # bin 0, which is always there
        while self._span(low, high) > _MOST_BINS:
            self._double_width()
        bins = values.mul(1 / self._width).floor_().int()
        lowest = int(bins.min())
        added = torch.bincount(bins.sub_(lowest)).cpu().numpy()
        start = min(self._first, lowest)
        end = max(self._first + len(self._counts), lowest + len(added))
        counts = np.zeros(end - start)
        counts[self._first - start : self._first - start + len(self._counts)] = self._counts
        counts[lowest - start : lowest - start + len(added)] += added
        self._first, self._counts = start, counts

    def _span(self, low: float, high: float) -> int:
        """Return the number of bins that would be needed to include two more values."""
        last = max(self._first + len(self._counts) - 1, math.floor(high / self._width))
        return last - min(self._first, math.floor(low / self._width)) + 1

    def _double_width(self) -> None:
        self._width *= 2
        bins = (np.arange(len(self._counts)) + self._first) >> 1
        self._first = int(bins[0])
        self._counts = np.bincount(bins - self._first, weights=self._counts).astype(np.float64)


def _percentile_range(centres: Floats, counts: Floats, extremes: Range, percentile: float) -> Range:
    """Find the ends that leave `100 - percentile` percent of the values outside on each side."""
    upto = np.cumsum(counts)
    outside = upto[-1] * (100 - percentile) / 100
    low = centres[np.searchsorted(upto, outside, side="right").clip(max=len(centres) - 1)]
    high = centres[np.searchsorted(upto, upto[-1] - outside, side="left")]
    if percentile == 100:
        return extremes
    return max(min(float(low), 0.0), extremes[0]), min(max(float(high), 0.0), extremes[1])


def _searched(extremes: Range, cost: Callable[[Range], float]) -> Range:
    """Search the upper end with the least cost, then the lower end, among shares of the extremes."""
    low, high = extremes
    high = min((high * share for share in _SHARES[::-1]), key=lambda end: cost((low, end))) if high > 0 else high
    low = min((low * share for share in _SHARES[::-1]), key=lambda end: cost((end, high))) if low < 0 else low
    return low, high


def _quantised(centres: Floats, ends: Range, bits: int, symmetric: bool) -> tuple[NDArray[Any], float, int]:
    """Quantise values; return their integers, the scale and the zero point."""
    affine = affine_of_range(*ends, bits=bits, symmetric=symmetric)
    integers = np.floor(centres / affine.scale + 0.5) + affine.zero_point
    return integers.clip(affine.low, affine.high), affine.scale, affine.zero_point


def _squared_error(centres: Floats, counts: Floats, ends: Range, bits: int, symmetric: bool) -> float:
    """Sum the squared quantisation error over all values."""
    integers, scale, zero_point = _quantised(centres, ends, bits, symmetric)
    return float((counts * ((integers - zero_point) * scale - centres) ** 2).sum())


def _divergence(centres: Floats, counts: Floats, ends: Range, bits: int, symmetric: bool) -> float:
    """Compute the Kullback-Leibler divergence of the quantised distribution from the given one.

    After Migacz, "8-bit inference with TensorRT", GTC 2017: the quantised distribution spreads the count of one
    integer evenly over its bins, and ignores values outside the range, which the clipped distribution counts at its
    ends. Separately counted zeros are left out, since every range represents them exactly. Here both ends of the
    range vary, not only one.
    """
    used = (counts > 0) & (centres != 0)
    centres, counts = centres[used], counts[used]
    inside = (centres >= ends[0]) & (centres <= ends[1])
    # A single bin would have all of the distribution, however much is clipped to it, and so no divergence.
    if inside.sum() < min(2, len(centres)):
        return math.inf
    kept = centres[inside]
    reference = counts[inside].copy()
    spread = reference.copy()
    reference[0] += counts[centres < ends[0]].sum()
    reference[-1] += counts[centres > ends[1]].sum()
    integers, _, _ = _quantised(kept, ends, bits, symmetric)
    _, level = np.unique(integers, return_inverse=True)
    spread = (np.bincount(level, weights=spread) / np.bincount(level))[level]
    p, q = reference / reference.sum(), spread / spread.sum()
    return float((p * np.log(p / q)).sum())


class Calibration:
    """One observer for each node of a graph that has its own scale."""

    def __init__(self, graph: Graph, config: QuantConfig) -> None:
        self._graph = graph
        self._config = config
        self._observers = {name: RangeObserver(name) for name in graph.scaled}
        # A search for a range is slow, and networks are quantised to many numbers of bits in turn.
        self._known: dict[tuple[str, int], Affine] = {}

    def with_config(self, config: QuantConfig) -> Calibration:
        """Return a calibration with the same observations and other settings."""
        other = Calibration(self._graph, config)
        other._observers = self._observers
        return other

    def observe(self, name: str, value: Tensor) -> None:
        """Add the result of a node for one batch, if the node has its own scale.

        Raises:
            DataError: A value is NaN or infinite.
        """
        if name in self._observers:
            self._observers[name].observe(value)
            self._known.clear()

    def affine(self, name: str, bits: int) -> Affine:
        """Return the scale and zero point of a node's result for a number of bits.

        Raises:
            DataError: There were no calibration images.
        """
        if (name, bits) not in self._known:
            self._known[name, bits] = self._affine(name, bits)
        return self._known[name, bits]

    def _affine(self, name: str, bits: int) -> Affine:
        symmetric = self._config.activation_symmetric
        low, high = self._observers[name].range(
            # The extremes of an image, black and white, are common values.
            "minmax" if name == INPUT else self._config.observer,
            bits=bits,
            percentile=self._config.percentile,
            symmetric=symmetric,
        )
        signed = self._config.activation_signed
        affine = affine_of_range(low, high, bits=bits, symmetric=symmetric, signed=signed)
        return within(affine, *self._graph.nodes[name].clamp)
