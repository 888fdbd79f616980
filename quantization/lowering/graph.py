"""A network as a graph of the operations that have an integer form, still in floating point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from torch import Tensor

from quantization.program.program import Kind, Setting
from quantization.program.shapes import check_size

# An elementwise function of one tensor; of an opaque node, any function of its inputs.
Function: TypeAlias = Callable[..., Tensor]
# Kinds of operations, and those that only runtimes with floating point have.
NodeKind: TypeAlias = Kind | Literal["opaque"]

INPUT = "input"
WEIGHTED: frozenset[NodeKind] = frozenset({"conv", "linear"})
# Operations that move or select values, and so keep the scale of their input.
MOVERS: frozenset[NodeKind] = frozenset({"max_pool", "upsample", "slice", "flatten", "reshape", "permute"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """One operation of a graph.

    Attributes:
        name: Name, as in `program.Operation`.
        kind: Kind of operation, as in `program.Operation`; opaque: one without an integer form.
        inputs: Names of the nodes it reads.
        settings: Settings by kind, as in `program.Operation`.
        clamp: Limits of the result; a ReLU is (0, inf).
        function: Function of a lookup or an opaque node.
        weight: Weight of conv (O, I / groups, KH, KW) or linear (O, I).
        bias: Bias of conv or linear (O,).
        gain: Factor of each channel (O,) that the weight is multiplied by; None is 1.
        origin: Addresses of the tensors it was made from: weight, bias, and those of norms folded in. Nodes with the
            same weight are uses of one layer.
        layer: Name of the node that has the weight of this one, and its bias if this one has none; "" if it has them.
        area: Number of values in a window of mean.
    """

    name: str
    kind: NodeKind
    inputs: tuple[str, ...]
    settings: Mapping[str, Setting] = field(default_factory=dict)
    clamp: tuple[float, float] = (-math.inf, math.inf)
    function: Function | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    gain: Tensor | None = None
    origin: tuple[int, ...] = ()
    layer: str = ""
    area: int = 0


def with_gain(weight: Tensor, gain: Tensor | None) -> Tensor:
    """Multiply each channel of a weight (O, ...) by its gain (O,); None is 1."""
    return weight if gain is None else weight * gain.view(-1, *(1 for _ in weight.shape[1:]))


# Computes the result of a node from its inputs.
NodeFunction: TypeAlias = Callable[[Node, Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """A whole network.

    Attributes:
        nodes: Nodes by name, in an order in which they can run; the first is the input.
        outputs: Names of the nodes whose results the network returns, in order.
        is_single: Whether the network returns one tensor and not a sequence.
        image_shape: Shape (C, H, W) of the images that the network was lowered for.
        size_step: Other images may be higher and wider by multiples of this; 0 if they have the same size.
        limited_by: Name of a node, or of an operator, that depends on the size where `size_step` is 0; "" if the
            network itself takes no other.
    """

    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]
    is_single: bool
    image_shape: tuple[int, int, int]
    size_step: int = 0
    limited_by: str = ""

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the nodes with weights, in order."""
        return tuple(node.name for node in self.nodes.values() if node.kind in WEIGHTED)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the nodes that have weights of their own, in order: one for each layer."""
        return tuple(name for name in self.weighted if not self.nodes[name].layer)

    def layer_of(self, name: str) -> str:
        """Return the name of the node that has the weights of a node."""
        return self.nodes[name].layer or name

    def uses(self, name: str) -> tuple[Node, ...]:
        """Return the nodes that use the same layer as a node, itself among them."""
        return tuple(self._uses[self.layer_of(name)])

    @cached_property
    def _uses(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for name in self.weighted:
            found.setdefault(self.layer_of(name), []).append(self.nodes[name])
        return found

    def is_shared(self, name: str) -> bool:
        """Return whether several nodes use the layer of a node."""
        return len(self.uses(name)) > 1

    def weights_of(self, node: Node) -> tuple[Tensor, Tensor] | None:
        """Return the weight and bias that a node computes with; None if it has none."""
        layer = self.nodes[self.layer_of(node.name)]
        bias = layer.bias if node.bias is None else node.bias
        return None if layer.weight is None or bias is None else (with_gain(layer.weight, node.gain), bias)

    @property
    def scaled(self) -> tuple[str, ...]:
        """Names of the nodes whose results have a scale of their own, in order."""
        return tuple(node.name for node in self.nodes.values() if node.kind not in MOVERS)

    def scale_of(self, name: str) -> str:
        """Return the name of the node whose scale applies to the result of a node."""
        node = self.nodes[name]
        while node.kind in MOVERS:
            node = self.nodes[node.inputs[0]]
        return node.name

    def heads(self) -> frozenset[str]:
        """Return the nodes with weights whose results the network returns, perhaps moved."""
        return frozenset(self.weighted) & {self.scale_of(name) for name in self.outputs}

    def readers(self) -> dict[str, list[str]]:
        """Map each node to the names of the nodes that read it, once per use."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for source in node.inputs:
                found[source].append(node.name)
        return found

    def last_reads(self) -> dict[str, tuple[str, ...]]:
        """Map each node to the nodes whose results no later node reads."""
        last = {name: name for name in self.nodes}
        for node in self.nodes.values():
            last.update(dict.fromkeys(node.inputs, node.name))
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, reader in last.items():
            found[reader].append(name)
        return {name: tuple(read) for name, read in found.items()}

    def results(self, images: Tensor, compute: NodeFunction) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and result of every node in order, keeping each result only until its last use.

        Args:
            images: Images (B, C, H, W).
            compute: Function of a node and its inputs that returns its result; the input node reads the images.

        Raises:
            DataError: The network does not hold for images of this size.
        """
        self.check_size(images)
        done_after = self.last_reads()
        held: dict[str, Tensor] = {}
        for node in self.nodes.values():
            inputs = [images] if node.name == INPUT else [held[name] for name in node.inputs]
            held[node.name] = compute(node, inputs)
            yield node.name, held[node.name]
            for name in done_after[node.name]:
                del held[name]

    def check_size(self, images: Tensor) -> None:
        """Check that the network holds for images (B, C, H, W) of this size.

        Raises:
            DataError: It does not.
        """
        check_size(tuple(images.shape[1:]), made_for=self.image_shape, step=self.size_step)

    def wide(self) -> frozenset[str]:
        """Return the scaled nodes whose results no convolution or linear layer reads."""
        sources = [self.nodes[name].inputs[0] for name in self.weighted]
        return frozenset(self.scaled) - {self.scale_of(source) for source in sources} - {INPUT}
