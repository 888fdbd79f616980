"""Round weights so that they compensate for their own rounding errors and for those of earlier layers.

A layer reads rounded values, which contain the errors of all earlier rounding. Its weights are first replaced by
those that, on calibration images, best reproduce the layer's original results from these inputs. Then they are
rounded one input after another: weights that are not yet rounded compensate for the error of each rounding as far as
possible. The remaining shift of each channel's mean is corrected in the bias.

Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022 (arXiv 2208.11580) and Frantar et al., "GPTQ", ICLR
2023 (arXiv 2210.17323) for the rounding; here in the order in which the inputs are stored. Li et al., "GPTAQ", ICML
2025 (arXiv 2504.02692) for matching the results of the real network; here by least squares before the rounding, not
within it. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019 (arXiv
1906.04721), section 4.2, for the biases; here measured on images.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.lowering.float_ops import clamped, computed, pair_of, sums
from quantization.lowering.graph import INPUT, WEIGHTED, Graph, Node, NodeFunction
from quantization.network import QuantizedNetwork
from quantization.ranges.affine import Grid
from quantization.rounding.held_values import HeldParts, HeldReals, HeldValues
from utils.errors import DataError

# Added to the diagonal of the second moments, as a share of its mean: GPTQ's.
_DAMPING = 0.01
# Inputs that are rounded before all later weights make up for their errors.
_BLOCK = 128


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Products of all pairs of a layer's inputs, summed over rows, with a damped diagonal.

    Attributes:
        rounded: Products of the rounded inputs with themselves (K, K), float64.
        mixed: Products of the real inputs with the rounded ones (K, K), float64.
    """

    rounded: Tensor
    mixed: Tensor

    @classmethod
    def of(cls, blocks: Iterable[tuple[Tensor, Tensor]], weight: Tensor) -> Moments:
        """Sum the products of real and rounded rows (N, K), given in pairs, for a weight (O, ...) of K inputs."""
        num_inputs = weight[0].numel()
        rounded, mixed = (
            torch.zeros(num_inputs, num_inputs, dtype=torch.float64, device=weight.device) for _ in range(2)
        )
        for real_rows, rounded_rows in blocks:
            # Products of one block are summed in the type of the network: twice as fast as in float64.
            rounded += rounded_rows.t() @ rounded_rows
            mixed += real_rows.t() @ rounded_rows
        level = float(rounded.diagonal().mean()) * _DAMPING
        # Inputs that are always zero do not constrain their weights, whatever the level.
        for moments in (rounded, mixed):
            moments.diagonal().add_(level if level > 0 else 1.0)
        return cls(rounded=rounded, mixed=mixed)

    def standing_in(self, weight: Tensor) -> Tensor:
        """Fit weights (O, ...), float64, that best reproduce the results of `weight` from the rounded inputs."""
        wanted = weight.flatten(1) @ self.mixed
        return torch.cholesky_solve(wanted.t(), torch.linalg.cholesky(self.rounded)).t().reshape(weight.shape)

    def rounded_weight(self, weight: Tensor, grid: Grid, *, is_zero: Tensor) -> Tensor:
        """Round weights to their grid so that their results on rounded inputs change least.

        Args:
            weight: Weights (O, ...), float64.
            grid: Scales and zero points of the weights.
            is_zero: Mask (O, ...) of the weights that become 0 whatever their value.
        """
        # With U the upper Cholesky factor of the inverse, row i of U / U[i, i] is how later inputs replace input i.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.rounded))
        factor = torch.linalg.cholesky(inverse, upper=True)
        remaining, is_kept_zero = weight.flatten(1).clone(), is_zero.flatten(1)
        result = torch.zeros_like(remaining)
        # Weights beyond a block learn of its errors all at once, which is far faster.
        for start in range(0, remaining.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            errors = _round_block(
                remaining[:, block], result[:, block], factor[block, block], grid, is_zero=is_kept_zero[:, block]
            )
            remaining[:, start + _BLOCK :] -= errors @ factor[block, start + _BLOCK :]
        return result.view(weight.shape)


def _round_block(remaining: Tensor, result: Tensor, factor: Tensor, grid: Grid, *, is_zero: Tensor) -> Tensor:
    """Round the weights of some inputs, one input after another.

    Args:
        remaining: Weights (O, N), which make up for the errors of those before them; changed.
        result: Where the rounded weights (O, N) are written.
        factor: Part (N, N) of the factor of these inputs.
        grid: Scales and zero points of the weights.
        is_zero: Mask (O, N) of the weights that become 0.

    Returns:
        Errors (O, N), each divided by the diagonal of the factor.
    """
    errors = torch.zeros_like(remaining)
    for index in range(remaining.shape[1]):
        column = remaining[:, index]
        integers = (torch.floor(column / grid.scales + 0.5) + grid.zero_points).clamp_(grid.low, grid.high)
        result[:, index] = ((integers - grid.zero_points) * grid.scales).masked_fill_(is_zero[:, index], 0)
        errors[:, index] = (column - result[:, index]) / factor[index, index]
        remaining[:, index + 1 :] -= errors[:, index, None] * factor[index, index + 1 :]
    return errors


# Most rows of inputs that the second moments of a layer are measured on; half as many gave a yolov5n the same error
# of its heads.
_MOST_ROWS = 20_000
# Most pixels of the images that are computed at one time: one large image.
_MOST_PIXELS = 640 * 640


@torch.no_grad()
def compensate_(network: QuantizedNetwork, batches: Sequence[Tensor], *, fixed: Collection[str] = ()) -> None:
    """Round the weights of a calibrated network so that its results change least; later layers see earlier changes.

    The weights are replaced by the rounded ones, on scales that are fixed until bits or settings change. Weights of
    layers with groups are rounded to the nearest, those of layers that are used several times at the first use, on
    what all uses read; zeros remain zeros. Besides the images, memory contains the inputs of later layers for all
    images, in three or four bytes per value.

    Args:
        network: Network with bits for every weight and value; its weights and biases are changed.
        batches: Images (B, C, H, W).
        fixed: Names of layers that are not quantised whose weights stay as they are.

    Raises:
        DataError: There are no images, or the network does not hold for their size.
    """
    parts = [part for images in batches for part in _in_parts(images)]
    if not parts:
        raise DataError("weights cannot be rounded without images; give those of calibration")
    for part in parts:
        network.graph.check_size(part)
    shared = [name for name in network.graph.layers if network.graph.is_shared(name)]
    held = _Held(
        reals=HeldReals(parts[0].dtype),
        rounded=_held_rounded(network, parts[0].dtype),
        weights={name: network.weights(name)[0].detach().clone() for name in shared},
    )
    stretches = _stretches(network.graph)
    for position, nodes in enumerate(stretches):
        read_later = {name for later in stretches[position + 1 :] for node in later for name in node.inputs}
        mean = _run_in_reals(network, nodes, parts, held=held, read_later=read_later)
        if nodes[0].kind in WEIGHTED and nodes[0].name not in fixed:
            _compensate_layer(network, nodes[0], held, mean, parts)
        _run_rounded(network, nodes, parts, held=held.rounded, read_later=read_later)
        held.reals.keep_only(read_later)
        held.rounded.keep_only(read_later)


@dataclass(frozen=True, kw_only=True)
class _Held:
    """Results of nodes that are read later, for all images.

    Attributes:
        reals: Results of the original network.
        rounded: Results in fake mode, with the weights that are rounded so far.
        weights: Weights before rounding of layers that are used several times.
    """

    reals: HeldReals
    rounded: HeldParts
    weights: Mapping[str, Tensor]


def _held_rounded(network: QuantizedNetwork, dtype: torch.dtype) -> HeldParts:
    return HeldValues(dtype, network.affine_of) if network.config.rounded == "values" else HeldReals(dtype)


def _in_parts(images: Tensor) -> Iterator[Tensor]:
    count = max(1, _MOST_PIXELS // (images.shape[2] * images.shape[3]))
    return (images[start : start + count] for start in range(0, len(images), count))


def _stretches(graph: Graph) -> list[list[Node]]:
    """Split all nodes, in order, into lists that each start with a layer with weights, except the first."""
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
    held: _Held,
    read_later: set[str],
) -> _Mean:
    """Compute a stretch of nodes without rounding, and store the results that are read after it.

    Returns:
        Mean of the results of the layer with weights before clamping.
    """
    mean = _Mean()

    def compute(node: Node, inputs: Sequence[Tensor]) -> Tensor:
        if node.kind not in WEIGHTED:
            return computed(node, inputs, None)
        weight, bias = network.weights(node.name)
        original = held.weights.get(network.graph.layer_of(node.name), weight)
        found = sums(node, inputs[0], (network.places.with_gain(node.name, original), bias))
        mean.add(found)
        return clamped(node, found)

    for name, value in _results(nodes, parts, compute, held=held.reals):
        if name in read_later:
            held.reals.add(name, value)
    return mean


def _run_rounded(
    network: QuantizedNetwork,
    nodes: Sequence[Node],
    parts: Sequence[Tensor],
    *,
    held: HeldParts,
    read_later: set[str],
) -> None:
    """Compute a stretch of nodes in fake mode, and store the results that are read after it."""
    for name, value in _results(nodes, parts, network.rounded, held=held):
        if name in read_later:
            held.add(name, value)


def _results(
    nodes: Sequence[Node], parts: Sequence[Tensor], compute: NodeFunction, *, held: HeldParts
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and result of each node of a stretch for each part of the images; earlier results are stored."""
    for index, images in enumerate(parts):
        values: dict[str, Tensor] = {}
        for node in nodes:
            inputs = [values[name] if name in values else held.part(name, index) for name in node.inputs]
            values[node.name] = compute(node, [images] if node.name == INPUT else inputs)
            yield node.name, values[node.name]


class _Mean:
    """A running mean of each channel over parts of the images."""

    def __init__(self) -> None:
        self._total: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add values (B, O, ...)."""
        others = [axis for axis in range(values.dim()) if axis != 1]
        self._total = self._total + values.sum(others, dtype=torch.float64)
        self.count += values.numel() // values.shape[1]

    def value(self) -> Tensor:
        """Return the mean (O,), float64."""
        return torch.as_tensor(self._total / self.count)


def _compensate_layer(
    network: QuantizedNetwork, node: Node, held: _Held, mean: _Mean, parts: Sequence[Tensor]
) -> None:
    weight, bias = network.weights(node.name)
    source = node.inputs[0]
    if network.graph.is_shared(node.name):
        if not node.layer:
            _round_for_all_uses(network, node, parts, mean)
    elif node.settings.get("groups", 1) == 1:
        step = max(1, mean.count // _MOST_ROWS)
        reals = _rows(node, held.reals.parts(source), weight)
        rounded = _rows(node, _read(network, node, held.rounded), weight)
        moments = Moments.of(zip(_every(step, reals), _every(step, rounded), strict=True), weight)
        wanted, is_zero = moments.standing_in(weight.double()), weight == 0
        weight.copy_(wanted.masked_fill(is_zero, 0))
        if grid := _hold_grid(network, node):
            weight.copy_(moments.rounded_weight(wanted, grid, is_zero=is_zero))
    else:
        _hold_grid(network, node)
    if not network.places.has_own_bias(node.name):
        return
    shifted, weights = _Mean(), network.rounded_weights(node)
    for x in _read(network, node, held.rounded):
        shifted.add(sums(node, x, weights))
    bias.add_((mean.value() - shifted.value()).to(bias.dtype))


def _round_for_all_uses(network: QuantizedNetwork, first: Node, parts: Sequence[Tensor], mean: _Mean) -> None:
    """Round the weight of a layer that is used several times, for what all uses read with the weights so far."""
    uses = network.graph.uses(first.name)
    grid, (weight, _) = _hold_grid(network, first), network.weights(first.name)
    if grid is None or any(node.settings.get("groups", 1) != 1 for node in uses):
        return
    step = max(1, len(uses) * mean.count // _MOST_ROWS)
    blocks = _every(step, _rows_of_uses(network, uses, parts, weight))
    moments = Moments.of(((rows, rows) for rows in blocks), weight)
    weight.copy_(moments.rounded_weight(weight.double(), grid, is_zero=weight == 0))


def _rows_of_uses(
    network: QuantizedNetwork, uses: Sequence[Node], parts: Sequence[Tensor], weight: Tensor
) -> Iterator[Tensor]:
    """Yield what nodes read in fake mode, as rows (N, K)."""
    for images in parts:
        read: list[tuple[Node, Tensor]] = []

        def compute(node: Node, inputs: Sequence[Tensor], read: list[tuple[Node, Tensor]] = read) -> Tensor:
            if node in uses:
                read.append((node, network.rounded_input(node, inputs[0])))
            return network.rounded(node, inputs)

        for _ in network.graph.results(images, compute):
            pass
        for node, value in read:
            yield from _rows(node, [value], weight)


def _read(network: QuantizedNetwork, node: Node, held: HeldParts) -> Iterator[Tensor]:
    """Yield what a node with weights reads, for each part of the images."""
    return (network.rounded_input(node, value) for value in held.parts(node.inputs[0]))


def _hold_grid(network: QuantizedNetwork, node: Node) -> Grid | None:
    """Fix the grid of a node's current weight, and return it; None if the weight is not quantised."""
    grid = network.layer_grid(node)
    if grid is not None:
        network.hold_grid_(node.name, grid)
    return grid


def _rows(node: Node, parts: Iterable[Tensor], weight: Tensor) -> Iterator[Tensor]:
    """Yield the inputs that the weights are multiplied with, as rows (N, K), one row per position."""
    for x in parts:
        if node.kind == "linear":
            yield x
            continue
        stride, padding, dilation = (pair_of(node, name) for name in ("stride", "padding", "dilation"))
        for image in x:
            yield F.unfold(image[None], weight.shape[2:], dilation, padding, stride)[0].t()


def _every(step: int, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield every `step`-th row of all blocks together."""
    start = 0
    for rows in blocks:
        yield rows[start::step]
        start = (start - len(rows)) % step
