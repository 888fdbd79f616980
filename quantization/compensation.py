"""Rounding of weights that makes good for its own errors: what the network gives changes less, at no cost later.

The weights of a layer are rounded one input after another. The error that the rounding of one makes in the results
on calibration images is taken up, as far as may be, by those not yet rounded. What then remains of a shift of each
channel's mean goes into the bias.

Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (arXiv 2208.11580) and Frantar et al., "GPTQ", ICLR
2023 (arXiv 2210.17323) for the rounding; here in the order in which the inputs are stored. Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019 (arXiv 1906.04721), section 4.2, for the
biases; here measured on images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.affine import Grid, fake_weight
from quantization.float_ops import clamped, computed, pair_of, sums
from quantization.graph import INPUT, WEIGHTED, Graph, Node
from quantization.held_values import HeldValues
from quantization.network import QuantizedNetwork
from utils.errors import DataError

# Rows of inputs that the second moments of a layer are measured on; more change nothing.
_MOST_ROWS = 40_000
# Added to the diagonal of the second moments, as a share of its mean: GPTQ's.
_DAMPING = 0.01
# Of the images that are computed at one time, however many there are: one large one.
_MOST_PIXELS = 640 * 640


@torch.no_grad()
def compensate_(network: QuantizedNetwork, batches: Sequence[Tensor]) -> None:
    """Round the weights of a calibrated network so that its results change least; layers later see earlier changes.

    The weights become the rounded ones, on scales that are held until bits or settings change. Weights of layers
    with groups are rounded to the nearest; zeros stay zeros. Beside the images memory holds what later layers read of
    all of them, in a byte or two for each number.

    Args:
        network: With bits for everything; its weights and biases change.
        batches: Images (B, C, H, W).

    Raises:
        DataError: There are none.
    """
    parts = [part for images in batches for part in _in_parts(images)]
    if not parts:
        raise DataError("weights cannot be rounded without images; give those of calibration")
    means = _means_of_sums(network, parts)
    held = HeldValues(parts[0].dtype)
    stretches = _stretches(network.graph)
    for position, nodes in enumerate(stretches):
        if nodes[0].name in means:
            _compensate_layer(network, nodes[0], held, means[nodes[0].name])
        read_later = {name for later in stretches[position + 1 :] for node in later for name in node.inputs}
        _run(network, nodes, parts, held=held, read_later=read_later)
        held.keep_only(read_later)


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


def _run(
    network: QuantizedNetwork,
    nodes: Sequence[Node],
    parts: Sequence[Tensor],
    *,
    held: HeldValues,
    read_later: set[str],
) -> None:
    """Compute a stretch in fake mode, part by part of the images, and hold what is read after it."""
    for index, images in enumerate(parts):
        values: dict[str, Tensor] = {}
        for node in nodes:
            inputs = [values[name] if name in values else held.part(name, index) for name in node.inputs]
            values[node.name] = network.rounded(node, [images] if node.name == INPUT else inputs)
        for name in read_later.intersection(values):
            affine = network.affine_of(name)
            assert affine is not None, f"{name} stays in real numbers"
            held.add(name, values[name], affine)


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


def _means_of_sums(network: QuantizedNetwork, parts: Iterable[Tensor]) -> dict[str, _Mean]:
    """Of what every layer with weights gives in real numbers, before it is clamped."""
    means = {name: _Mean() for name in network.graph.weighted}

    def compute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        if node.name not in means:
            return computed(node, inputs, None)
        found = sums(node, inputs[0], network.weights(node.name))
        means[node.name].add(found)
        return clamped(node, found)

    for images in parts:
        for _ in network.graph.results(images, compute):
            pass
    return means


def _compensate_layer(network: QuantizedNetwork, node: Node, held: HeldValues, mean: _Mean) -> None:
    weight, bias = network.weights(node.name)
    grid = network.grid(node)
    assert grid is not None
    network.hold_grid_(node.name, grid)
    source = node.inputs[0]
    if node.settings.get("groups", 1) == 1:
        step = max(1, mean.count // _MOST_ROWS)
        moments = _second_moments(_every(step, _rows(node, held.parts(source), weight)), weight)
        weight.copy_(_rounded(weight, grid, moments))
    rounded, shifted = network.rounded_weights(node), _Mean()
    for x in held.parts(source):
        shifted.add(sums(node, x, rounded))
    bias.add_((mean.value() - shifted.value()).to(bias.dtype))


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


def _second_moments(blocks: Iterable[Tensor], weight: Tensor) -> Tensor:
    """Products of all pairs of a layer's inputs, summed over rows (N, K): (K, K) float64, damped."""
    num_inputs = weight[0].numel()
    moments = torch.zeros(num_inputs, num_inputs, dtype=torch.float64, device=weight.device)
    for block in blocks:
        rows = block.double()
        moments.addmm_(rows.t(), rows)
    level = float(moments.diagonal().mean()) * _DAMPING
    # Inputs that are always zero say nothing of their weights, whatever the level.
    moments.diagonal().add_(level if level > 0 else 1.0)
    return moments


def _rounded(weight: Tensor, grid: Grid, moments: Tensor) -> Tensor:
    """Weights (O, ...) on their grid, such that the results on inputs of these second moments change least."""
    # With the inverse's upper Cholesky factor U, row i of U / U[i, i] says how later inputs stand in for input i.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    remaining = weight.detach().double().flatten(1).clone()  # (O, K)
    is_kept_zero = remaining == 0
    result = torch.zeros_like(remaining)
    for index in range(remaining.shape[1]):
        column = remaining[:, index]
        rounded = fake_weight(column, grid)
        result[:, index] = torch.where(is_kept_zero[:, index], 0.0, rounded)
        error = (column - result[:, index]) / factor[index, index]
        remaining[:, index + 1 :] -= error[:, None] * factor[index, index + 1 :]
    return result.view(weight.shape).to(weight.dtype)
