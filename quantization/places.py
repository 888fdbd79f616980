"""The parameters of a quantised network: those of each layer once, under its old path, however often it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from quantization.lowering.graph import Graph, Node, with_gain


class _Place(nn.Module):
    """Where the weights of a layer are; it is called with what the layer reads, for hooks."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the layer reads."""
        return x


class Places:
    """Finds the parameters of the nodes of a graph in a module.

    A layer has a weight and a bias. A node that uses the weight of another has at most a bias of its own, and a gain
    (O,) that it multiplies the weight by.

    Args:
        layers: Module with a submodule for each node with weights.
        graph: Network, whose nodes need no weights.
    """

    def __init__(self, layers: nn.Module, graph: Graph) -> None:
        self._layers, self._graph = layers, graph

    def __getitem__(self, name: str) -> nn.Module:
        """Return the place of a node, which is called with what it reads."""
        return self._layers.get_submodule(name)

    def weights(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the weight and bias that a node computes with, before its gain."""
        layer = self[self._graph.layer_of(name)]
        own = self[name]._parameters.get("bias")
        return layer.get_parameter("weight"), layer.get_parameter("bias") if own is None else own

    def has_own_bias(self, name: str) -> bool:
        """Return whether no other node uses the bias of a node."""
        users = [node.name for node in self._graph.uses(name) if self.weights(node.name)[1] is self.weights(name)[1]]
        return len(users) == 1

    @torch.no_grad()
    def largest_bias(self, sources: Mapping[str, float | Tensor | None]) -> Tensor:
        """Return the largest bias (O,) of nodes that use a layer, in units of its weight and of what they read.

        Args:
            sources: Scale of what each node reads, by its name; None where that is not rounded.
        """
        found = []
        for name, source in sources.items():
            if source is None:
                continue
            gain = self.gain(name)
            found.append(self.weights(name)[1].double().abs() / (source if gain is None else source * gain.abs()))
        return torch.stack(found).amax(0)

    def gain(self, name: str) -> nn.Parameter | None:
        """Return the gain of a node (O,); None if it is 1."""
        return self[name]._parameters.get("gain")

    def with_gain(self, name: str, weight: Tensor) -> Tensor:
        """Return the weight of a node's layer as the node uses it."""
        return with_gain(weight, self.gain(name))


def with_places(layers: nn.Module, graph: Graph) -> Graph:
    """Register the weights, biases and gains of all nodes in `layers`; return the graph without them."""
    nodes = {name: _without_weights(layers, node) for name, node in graph.nodes.items()}
    return replace(graph, nodes=nodes)


def _without_weights(layers: nn.Module, node: Node) -> Node:
    given: Mapping[str, Tensor | None] = {"weight": node.weight, "bias": node.bias, "gain": node.gain}
    if node.weight is None and not node.layer:
        return node
    place = layers
    for part in node.name.split("."):
        if part not in place._modules:
            place.add_module(part, _Place())
        place = place.get_submodule(part)
    for name, value in given.items():
        if value is not None:
            place.register_parameter(name, nn.Parameter(value))
    return replace(node, weight=None, bias=None, gain=None)
