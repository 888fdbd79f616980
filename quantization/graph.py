"""A network as a graph of the kinds of operations that integers can do, still in real numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor

from quantization.program import Kind, Setting

# Any function of one tensor, number by number.
Function: TypeAlias = Callable[[Tensor], Tensor]

INPUT = "input"
WEIGHTED: frozenset[Kind] = frozenset({"conv", "linear"})
# They move numbers or choose among them, and so keep the scale of what they read.
MOVERS: frozenset[Kind] = frozenset({"max_pool", "upsample", "slice", "flatten", "reshape", "permute"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation. Names, inputs and settings as in `program.Operation`.

    Attributes:
        clamp: Real numbers between which the result is kept: a ReLU is (0, inf).
        function: Of a lookup.
        weight: conv, linear: (O, I / groups, KH, KW) or (O, I).
        bias: conv, linear: (O,).
        area: mean: how many numbers are in a window.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    clamp: tuple[float, float] = (-math.inf, math.inf)
    function: Function | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    area: int = 0


# From a node and what it reads to its result.
NodeFunction: TypeAlias = Callable[[Node, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A whole network.

    Attributes:
        nodes: By name, in an order in which they can run; the first is the input.
        outputs: Names of the nodes whose results the network gives, in order.
        is_single: It gives one tensor and not a sequence.
    """

    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]
    is_single: bool

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the nodes with weights, in order."""
        return tuple(node.name for node in self.nodes.values() if node.kind in WEIGHTED)

    @property
    def scaled(self) -> tuple[str, ...]:
        """Names of the nodes whose results have a scale of their own, in order."""
        return tuple(node.name for node in self.nodes.values() if node.kind not in MOVERS)

    def scale_of(self, name: str) -> str:
        """The node whose scale the result of a node has."""
        node = self.nodes[name]
        while node.kind in MOVERS:
            node = self.nodes[node.inputs[0]]
        return node.name

    def readers(self) -> dict[str, list[str]]:
        """For each node the names of those that read it, once per use."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for source in node.inputs:
                found[source].append(node.name)
        return found

    def last_reads(self) -> dict[str, tuple[str, ...]]:
        """For each node those whose results no node after it reads."""
        last = {name: name for name in self.nodes}
        for node in self.nodes.values():
            last.update(dict.fromkeys(node.inputs, node.name))
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, reader in last.items():
            found[reader].append(name)
        return {name: tuple(read) for name, read in found.items()}

    def results(self, images: Tensor, compute: NodeFunction) -> Iterator[tuple[str, Tensor]]:
        """The result of every node by name, in order; each is let go after its last reader.

        Args:
            images: (B, C, H, W).
            compute: From a node and what it reads to its result; the input reads the images.
        """
        done_after = self.last_reads()
        held: dict[str, Tensor] = {}
        for node in self.nodes.values():
            inputs = [images] if node.name == INPUT else [held[name] for name in node.inputs]
            held[node.name] = compute(node, inputs)
            yield node.name, held[node.name]
            for name in done_after[node.name]:
                del held[name]

    def wide(self) -> frozenset[str]:
        """Scaled nodes whose results no convolution or linear layer reads."""
        sources = [self.nodes[name].inputs[0] for name in self.weighted]
        return frozenset(self.scaled) - {self.scale_of(source) for source in sources} - {INPUT}
