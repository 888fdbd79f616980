"""Rounding of weights that makes good for its own errors, and for those of the layers before.

A layer reads rounded numbers, in error by all that was rounded before it. Its weights first become those that give of
these, on calibration images, most nearly what the layer gave of the real ones. Then they are rounded one input after
another: the error that the rounding of one makes in the results is taken up, as far as may be, by those not yet
rounded. What remains of a shift of each channel's mean goes into the bias.

Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (arXiv 2208.11580) and Frantar et al., "GPTQ", ICLR
2023 (arXiv 2210.17323) for the rounding; here in the order in which the inputs are stored. Li et al., "GPTAQ", ICML
2025 (arXiv 2504.02692) for matching the results of the real network; here by least squares before the rounding, not
within it. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019 (arXiv
1906.04721), section 4.2, for the biases; here measured on images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.affine import Grid
from quantization.float_ops import clamped, computed, pair_of, sums
from quantization.graph import INPUT, WEIGHTED, Graph, Node, NodeFunction
from quantization.held_values import HeldReals, HeldValues
from quantization.moments import Moments
from quantization.network import QuantizedNetwork
from utils.errors import DataError

# Rows of inputs that the second moments of a layer are measured on; more change nothing.
_MOST_ROWS = 40_000
# Of the images that are computed at one time, however many there are: one large one.
_MOST_PIXELS = 640 * 640


@torch.no_grad()
def compensate_(network: QuantizedNetwork, batches: Sequence[Tensor]) -> None:
    """Round the weights of a calibrated network so that its results change least; layers later see earlier changes.

    The weights become the rounded ones, on scales that are held until bits or settings change. Weights of layers
    with groups are rounded to the nearest; zeros stay zeros. Beside the images memory holds what later layers read of
    all of them, in three or four bytes for each number.

    Args:
        network: With bits for everything; its weights and biases change.
        batches: Images (B, C, H, W).

    Raises:
        DataError: There are none.
    """
    parts = [part for images in batches for part in _in_parts(images)]
    if not parts:
        raise DataError("weights cannot be rounded without images; give those of calibration")
    held = _Held(reals=HeldReals(parts[0].dtype), rounded=HeldValues(parts[0].dtype))
    stretches = _stretches(network.graph)
    for position, nodes in enumerate(stretches):
        read_later = {name for later in stretches[position + 1 :] for node in later for name in node.inputs}
        mean = _run_in_reals(network, nodes, parts, held=held.reals, read_later=read_later)
        if nodes[0].kind in WEIGHTED:
            _compensate_layer(network, nodes[0], held, mean)
        _run_rounded(network, nodes, parts, held=held.rounded, read_later=read_later)
        held.reals.keep_only(read_later)
        held.rounded.keep_only(read_later)


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Results of nodes that are read later, of all images.

    Attributes:
        reals: Of the network as it was.
        rounded: Of it in fake mode, with the weights that are rounded by now.
    """

    reals: HeldReals
    rounded: HeldValues


def _in_parts(images: Tensor) -> Iterator[Tensor]:
    count = max(1, _MOST_PIXELS // (images.shape[2] * images.shape[3]))
    return (images[start : start + count] for start in range(0, len(images), count))


def _stretches(graph: Graph) -> list[list[Node]]:
    """All nodes in order; each layer with weights begins a list."""
    found: list[list[Node]] = [[]]
    for node in graph.nodes.values():
        if node.kind in WEIGHTED:
            found.append([])
        found[-1].append(node)
    return found


def _run_in_reals(
    network: QuantizedNetwork,
    nodes: Sequence[Node],
    parts: Sequence[Tensor],
    *,
    held: HeldReals,
    read_later: set[str],
) -> _Mean:
    """Compute a stretch without rounding, and hold what is read after it.

    Returns:
        Of what the layer with weights gives before it is clamped.
    """
    mean = _Mean()

    def compute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        if node.kind not in WEIGHTED:
            return computed(node, inputs, None)
        found = sums(node, inputs[0], network.weights(node.name))
        mean.add(found)
        return clamped(node, found)

    for name, value in _results(nodes, parts, compute, held=held):
        if name in read_later:
            held.add(name, value)
    return mean


def _run_rounded(
    network: QuantizedNetwork,
    nodes: Sequence[Node],
    parts: Sequence[Tensor],
    *,
    held: HeldValues,
    read_later: set[str],
) -> None:
    """The same in fake mode."""
    for name, value in _results(nodes, parts, network.rounded, held=held):
        if name in read_later:
            affine = network.affine_of(name)
            assert affine is not None, f"{name} stays in real numbers"
            held.add(name, value, affine)


def _results(
    nodes: Sequence[Node], parts: Sequence[Tensor], compute: NodeFunction, *, held: HeldReals | HeldValues
) -> Iterator[tuple[str, Tensor]]:
    """What each node of a stretch gives, part by part of the images; what came before it is held."""
    for index, images in enumerate(parts):
        values: dict[str, Tensor] = {}
        for node in nodes:
            inputs = [values[name] if name in values else held.part(name, index) for name in node.inputs]
            values[node.name] = compute(node, [images] if node.name == INPUT else inputs)
            yield node.name, values[node.name]


class _Mean:
    """Mean of each channel over parts of the images."""

    def __init__(self) -> None:
        self._total: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add (B, O, ...)."""
        others = [axis for axis in range(values.dim()) if axis != 1]
        self._total = self._total + values.sum(others, dtype=torch.float64)
        self.count += values.numel() // values.shape[1]

    def value(self) -> Tensor:
        """(O,) float64."""
        return torch.as_tensor(self._total / self.count)


def _compensate_layer(network: QuantizedNetwork, node: Node, held: _Held, mean: _Mean) -> None:
    weight, bias = network.weights(node.name)
    source = node.inputs[0]
    if node.settings.get("groups", 1) == 1:
        step = max(1, mean.count // _MOST_ROWS)
        reals, rounded = (_rows(node, values.parts(source), weight) for values in (held.reals, held.rounded))
        moments = Moments.of(zip(_every(step, reals), _every(step, rounded), strict=True), weight)
        wanted, is_zero = moments.standing_in(weight.double()), weight == 0
        weight.copy_(wanted.masked_fill(is_zero, 0))
        weight.copy_(moments.rounded_weight(wanted, _hold_grid(network, node), is_zero=is_zero))
    else:
        _hold_grid(network, node)
    shifted, weights = _Mean(), network.rounded_weights(node)
    for x in held.rounded.parts(source):
        shifted.add(sums(node, x, weights))
    bias.add_((mean.value() - shifted.value()).to(bias.dtype))


def _hold_grid(network: QuantizedNetwork, node: Node) -> Grid:
    """The grid of the weight as it is now, which stays."""
    grid = network.grid(node)
    assert grid is not None, f"{node.name} stays in real numbers"
    network.hold_grid_(node.name, grid)
    return grid


def _rows(node: Node, parts: Iterable[Tensor], weight: Tensor) -> Iterator[Tensor]:
    """What the weights of each channel are multiplied with: (N, K), one row for each position of a part."""
    for x in parts:
        if node.kind == "linear":
            yield x
            continue
        stride, padding, dilation = (pair_of(node, name) for name in ("stride", "padding", "dilation"))
        for image in x:
            yield F.unfold(image[None], weight.shape[2:], dilation, padding, stride)[0].t()


def _every(step: int, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Every `step`-th row of all blocks together."""
    start = 0
    for rows in blocks:
        yield rows[start::step]
        start = (start - len(rows)) % step
