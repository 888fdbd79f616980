"""Fold scales per channel into layers; the weights of a layer that is used several times are kept once.

Folding only collects the gain of each channel. In the end the uses of a layer share its weight, whatever norms follow
each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from quantization.lowering.graph import WEIGHTED, Graph, Node, with_gain

# Least factor between two uses of a channel. A norm that silences a channel at one use alone would leave the integers
# of that use without room for their bias.
_LEAST_GAIN = 2.0**-6


def is_per_channel(node: Node) -> bool:
    """Return whether a node only scales and shifts each channel."""
    if node.weight is None:
        return False
    if node.kind == "linear":
        rows, columns = node.weight.shape
        return rows == columns and bool((node.weight == torch.diag(node.weight.diagonal())).all())
    is_pointwise = tuple(node.weight.shape[1:]) == (1, 1, 1) and node.settings["groups"] == len(node.weight)
    return is_pointwise and node.settings["stride"] == (1, 1) and node.settings["padding"] == (0, 0)


def with_channel_scale(layer: Node, scale: Node) -> Node:
    """Fold a scale and shift per channel into the gain and bias of the layer before it, in float64."""
    assert layer.bias is not None
    assert scale.weight is not None
    assert scale.bias is not None
    factors = (scale.weight.diagonal() if scale.kind == "linear" else scale.weight.flatten()).double()
    gain = factors if layer.gain is None else layer.gain * factors
    bias = layer.bias.double() * factors + scale.bias.double()
    origin = (*layer.origin, *scale.origin)
    return replace(layer, gain=gain, bias=bias.float(), clamp=scale.clamp, origin=origin)


def with_one_layer_each(graph: Graph) -> Graph:
    """Fold gains into weights; of nodes whose weights were made from the same tensors, the first keeps them.

    The others get its name as their `layer`. Where norms after the uses differ, each keeps a bias, and a gain by
    which the weights of the first are multiplied.
    """
    groups: dict[tuple[object, ...], list[Node]] = {}
    for node in graph.nodes.values():
        if node.kind in WEIGHTED:
            assert node.weight is not None
            key = (node.kind, node.weight.shape, node.weight.stride(), *(node.origin[:1] or (node.name,)))
            groups.setdefault(key, []).append(node)
    made = {node.name: node for group in groups.values() for node in _one_layer(group)}
    return replace(graph, nodes={name: made.get(name, node) for name, node in graph.nodes.items()})


def _one_layer(uses: Sequence[Node]) -> list[Node]:
    """Return the nodes that use a layer, which share its weights unless their gains are too unlike."""
    gains = torch.stack([_gain(node) for node in uses])
    largest = gains.gather(0, gains.abs().argmax(0, keepdim=True))[0]
    # The gains of a channel that is silent in all uses are alike.
    ratios = torch.where(largest == 0, 1.0, gains / torch.where(largest == 0, 1.0, largest))
    if ratios.abs().min() < _LEAST_GAIN or not all(_is_equal(node.weight, uses[0].weight) for node in uses):
        return [_with_weight(node, _gain(node)) for node in uses]
    first = _with_weight(uses[0], largest)
    is_alike = bool((ratios == 1).all()) and all(_is_equal(node.bias, first.bias) for node in uses)
    if is_alike and len({node.origin for node in uses}) == 1:  # the same norms after each use, or none
        return [first, *(replace(node, weight=None, bias=None, gain=None, layer=first.name) for node in uses[1:])]
    has_norms = any(node.gain is not None for node in uses)
    own = [ratio.float() if has_norms else None for ratio in ratios]
    others = zip(uses[1:], own[1:], strict=True)
    return [
        replace(first, gain=own[0]),
        *(replace(node, weight=None, gain=gain, layer=first.name) for node, gain in others),
    ]


def _gain(node: Node) -> Tensor:
    assert node.weight is not None
    return torch.ones(len(node.weight), dtype=torch.float64) if node.gain is None else node.gain


def _with_weight(node: Node, gain: Tensor) -> Node:
    """Return a node with its weight times a gain (O,), multiplied in float64, in memory of its own."""
    assert node.weight is not None
    return replace(node, weight=with_gain(node.weight.double(), gain).float(), gain=None)


def _is_equal(one: Tensor | None, other: Tensor | None) -> bool:
    assert one is not None
    assert other is not None
    return torch.equal(one, other)
