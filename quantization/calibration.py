"""What was seen of every value on calibration images, and the scales that follow from it."""

from __future__ import annotations

from torch import Tensor

from quantization.affine import affine_of_range, within
from quantization.config import QuantConfig
from quantization.graph import INPUT, Graph
from quantization.observers import RangeObserver
from quantization.program import Affine


class Calibration:
    """One observer for each node of a graph that has a scale of its own."""

    def __init__(self, graph: Graph, config: QuantConfig) -> None:
        self._graph = graph
        self._config = config
        self._observers = {name: RangeObserver(name) for name in graph.scaled}
        # Searching a range takes long, and networks are quantised with many bits in turns.
        self._known: dict[tuple[str, int], Affine] = {}

    def with_config(self, config: QuantConfig) -> Calibration:
        """The same observations under other settings."""
        other = Calibration(self._graph, config)
        other._observers = self._observers
        return other

    def observe(self, name: str, value: Tensor) -> None:
        """Add the result of a node for one batch; one without a scale of its own adds nothing.

        Raises:
            DataError: NaN or infinite numbers.
        """
        if name in self._observers:
            self._observers[name].observe(value)
            self._known.clear()

    def affine(self, name: str, bits: int) -> Affine:
        """The scale of a node's result in so many bits.

        Raises:
            DataError: No images were seen.
        """
        if (name, bits) not in self._known:
            self._known[name, bits] = self._affine(name, bits)
        return self._known[name, bits]

    def _affine(self, name: str, bits: int) -> Affine:
        symmetric = self._config.activation_symmetric
        low, high = self._observers[name].range(
            # The extremes of an image are black and white, and common.
            "minmax" if name == INPUT else self._config.observer,
            bits=bits,
            percentile=self._config.percentile,
            symmetric=symmetric,
        )
        affine = affine_of_range(low, high, bits=bits, symmetric=symmetric)
        return within(affine, *self._graph.nodes[name].clamp)
