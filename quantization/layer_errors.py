"""Tell where rounding costs: how far each layer's result is off, what it costs alone, and which range is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from quantization.lowering.float_ops import computed
from quantization.lowering.graph import Node
from quantization.network import QuantizedNetwork
from quantization.program.program import Affine
from quantization.ranges.affine import fake_weight

# Images are computed one at a time, once for each layer.
_MOST_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """A layer with rounded weights.

    Attributes:
        layer: Its name.
        weight_bits: Bits of its weights.
        value_bits: Bits of what it reads.
        error: Norm of the difference of its result from that of the real network, over the norm of that, with
            everything rounded.
        alone: The same of the network's outputs, the mean over them, with only this layer rounded.
        share: Share of this layer in the squares of `alone` of all layers.
        low, high: Smallest and largest value that it reads on the images.
        kept_low, kept_high: Smallest and largest value that its integers stand for.
    """

    layer: str
    weight_bits: int
    value_bits: int
    error: float
    alone: float
    share: float
    low: float
    high: float
    kept_low: float
    kept_high: float


@torch.no_grad()
def layer_errors(network: QuantizedNetwork, reals: QuantizedNetwork, images: Sequence[Tensor]) -> list[LayerError]:
    """Measure every layer whose weights are rounded, in execution order.

    Args:
        network: Network with ranges; its weights may be fitted, rounded or trained.
        reals: The same network with its real weights, of which nothing is rounded.
        images: Images (B, C, H, W); the first few are used.
    """
    nodes = network.graph.nodes
    rounded = [name for name in network.graph.weighted if network.bits.weights[name] is not None]
    totals = {name: _Distances() for name in rounded}
    alone = {name: _Distances() for name in rounded}
    ranges = {name: [0.0, 0.0] for name in rounded}
    for part in images[:_MOST_IMAGES]:
        exact = dict(reals.graph.results(part, reals.exact))
        for name, value in network.graph.results(part, network.rounded):
            if name in totals:
                totals[name].add(value, exact[name])
        for name in rounded:
            found = dict(network.graph.results(part, partial(_one_rounded, network, reals, name)))
            for output in network.graph.outputs:
                alone[name].add(found[output], exact[output])
            low, high = torch.aminmax(exact[nodes[name].inputs[0]])
            ranges[name] = [min(ranges[name][0], float(low)), max(ranges[name][1], float(high))]
    whole = sum(distances.mean**2 for distances in alone.values()) or 1.0
    return [
        _row(network, name, error=totals[name].mean, alone=alone[name].mean, whole=whole, ends=ranges[name])
        for name in rounded
    ]


def _one_rounded(
    network: QuantizedNetwork, reals: QuantizedNetwork, name: str, node: Node, inputs: Sequence[Tensor]
) -> Tensor:
    """Compute a node as in the real network, or rounded if it is the one of that name."""
    if node.name != name:
        return reals.exact(node, inputs)
    # Weights that are fitted to rounded inputs would look worse alone than they are, so it is the real ones that are
    # rounded.
    grid = network.grid(node)
    assert grid is not None
    weight, bias = reals.real_weights(name)
    read = network.rounded_value(network.graph.scale_of(node.inputs[0]), inputs[0])
    return computed(node, [read], (fake_weight(weight, grid), bias))


def _row(
    network: QuantizedNetwork, name: str, *, error: float, alone: float, whole: float, ends: Sequence[float]
) -> LayerError:
    source = network.graph.scale_of(network.graph.nodes[name].inputs[0])
    affine, value_bits = network.affine_of(source), network.bits.values[source]
    weight_bits = network.bits.weights[name]
    assert affine is not None
    assert value_bits is not None
    assert weight_bits is not None
    kept_low, kept_high = _kept(affine)
    return LayerError(
        layer=name,
        weight_bits=weight_bits,
        value_bits=value_bits,
        error=error,
        alone=alone,
        share=alone**2 / whole,
        low=ends[0],
        high=ends[1],
        kept_low=kept_low,
        kept_high=kept_high,
    )


def _kept(affine: Affine) -> tuple[float, float]:
    low, high = ((end - affine.zero_point) * affine.scale for end in (affine.low, affine.high))
    return low, high


class _Distances:
    """The mean over tensors of the norm of a difference, over the norm of what it is a difference from."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """Add a tensor, and what it should be."""
        norm = float(wanted.norm())
        self._total += float((found - wanted).norm()) / norm if norm else 0.0
        self._count += 1

    @property
    def mean(self) -> float:
        """The mean so far; 0 of none."""
        return self._total / max(self._count, 1)
