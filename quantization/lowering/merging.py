"""Merge nodes of a lowered graph without changing its results, so that values are rounded less often."""

from __future__ import annotations

from dataclasses import replace

from quantization.lowering.folding import is_per_channel, with_channel_scale, with_one_layer_each
from quantization.lowering.graph import INPUT, MOVERS, WEIGHTED, Function, Graph, Node

_NO_CLAMP = (-float("inf"), float("inf"))


def merged(graph: Graph) -> Graph:
    """Merge each node into its input if it is the only reader of that input.

    Scales and shifts per channel are merged into the weights before them, clamps into any node that has its own
    range, even through movers, and two successive tables into one. Nodes that no output needs are removed.
    """
    return with_one_layer_each(_Merging(_needed(graph)).run())


class _Merging:
    """One sweep in the order of the graph, so that chains merge link by link."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes: dict[str, Node] = {}
        # Nodes that now compute the results of merged nodes.
        self._now: dict[str, str] = {}
        self._num_readers = {name: len(readers) for name, readers in graph.readers().items()}
        for name in graph.outputs:
            self._num_readers[name] += 1

    def run(self) -> Graph:
        for given in self._graph.nodes.values():
            node = replace(given, inputs=tuple(self._now.get(name, name) for name in given.inputs))
            target = self._merge(node)
            if target is None:
                self._nodes[node.name] = node
            else:
                self._now[node.name] = target
                self._num_readers[target] = self._num_readers[node.name]
        outputs = tuple(self._now.get(name, name) for name in self._graph.outputs)
        return replace(self._graph, nodes=self._nodes, outputs=outputs)

    def _merge(self, node: Node) -> str | None:
        """Merge `node` into an earlier node; return the name of the node with its result, or None if impossible."""
        if len(node.inputs) != 1 or self._num_readers[node.inputs[0]] != 1:
            return None
        source = self._nodes[node.inputs[0]]
        if node.kind == "rescale":
            return self._merge_clamp(node, source)
        combined = None
        if is_per_channel(node) and source.kind in WEIGHTED and source.clamp == _NO_CLAMP:
            combined = with_channel_scale(source, node)
        elif node.kind == "lookup" and source.kind == "lookup":
            combined = replace(source, function=_chain(source, node), clamp=node.clamp)
        if combined is None:
            return None
        self._nodes[source.name] = combined
        return source.name

    def _merge_clamp(self, node: Node, source: Node) -> str | None:
        """Merge a clamp into an earlier node; being monotone, it commutes with a maximum or a move."""
        target = source
        while target.kind in MOVERS:
            target = self._nodes[target.inputs[0]]
            if self._num_readers[target.name] != 1:
                return None
        if target.name == INPUT:
            return None
        low, high = (max(target.clamp[0], node.clamp[0]), min(target.clamp[1], node.clamp[1]))
        if low > high:
            return None
        self._nodes[target.name] = replace(target, clamp=(low, high))
        return source.name


def _chain(first: Node, second: Node) -> Function:
    """Compose the functions of two lookups, with the clamp between them."""
    inner, outer = first.function, second.function
    assert inner is not None
    assert outer is not None
    low, high = first.clamp
    return lambda x: outer(inner(x).clamp(low, high))


def _needed(graph: Graph) -> Graph:
    """Remove nodes that no output depends on."""
    needed = {INPUT, *graph.outputs}
    for node in reversed(list(graph.nodes.values())):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes={name: node for name, node in graph.nodes.items() if name in needed})
