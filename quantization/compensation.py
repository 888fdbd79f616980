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

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from quantization.affine import Grid, fake_weight
from quantization.float_ops import computed, pair_of
from quantization.graph import INPUT, Node
from quantization.network import QuantizedNetwork

# Rows of inputs that the second moments of a layer are measured on; more change nothing.
_MOST_ROWS = 40_000
# Added to the diagonal of the second moments, as a share of its mean: GPTQ's.
_DAMPING = 0.01


@torch.no_grad()
def compensate_(network: QuantizedNetwork, images: Tensor) -> None:
    """Round the weights of a calibrated network so that its results change least; layers later see earlier changes.

    The weights become the rounded ones, on scales that are held until bits or settings change. Weights of layers
    with groups are rounded to the nearest; zeros stay zeros.

    Args:
        network: With bits for everything; its weights and biases change.
        images: (B, C, H, W), held in memory with all that is computed of them at one time.
    """
    means = _channel_means(network, images)
    waiting = {name: len(readers) for name, readers in network.graph.readers().items()}
    values: dict[str, Tensor] = {}
    for node in network.graph.nodes.values():
        inputs = [images] if node.name == INPUT else [values[name] for name in node.inputs]
        if node.name in means:
            _compensate_layer(network, node, inputs[0], means[node.name])
        values[node.name] = network.rounded(node, inputs)
        for name in node.inputs:
            waiting[name] -= 1
            if not waiting[name]:
                del values[name]


def _channel_means(network: QuantizedNetwork, images: Tensor) -> dict[str, Tensor]:
    """Of the sums of every layer with weights, in real numbers, before they are clamped; (O,) each."""
    means = {}
    values: dict[str, Tensor] = {}
    for node in network.graph.nodes.values():
        weights = network.weights(node.name) if node.name in network.bits.weights else None
        inputs = [values[name] for name in node.inputs]
        if weights is not None:
            means[node.name] = _mean_of(computed(_unclamped(node), inputs, weights))
        values[node.name] = images if node.name == INPUT else computed(node, inputs, weights)
    return means


def _compensate_layer(network: QuantizedNetwork, node: Node, x: Tensor, mean: Tensor) -> None:
    weight, bias = network.weights(node.name)
    grid = network.grid(node)
    assert grid is not None
    network.hold_grid_(node.name, grid)
    if node.settings.get("groups", 1) == 1:
        weight.copy_(_rounded(weight, grid, _second_moments(node, x, weight)))
    bias.add_(mean - _mean_of(computed(_unclamped(node), [x], network.rounded_weights(node))))


def _unclamped(node: Node) -> Node:
    return replace(node, clamp=(-math.inf, math.inf))


def _mean_of(sums: Tensor) -> Tensor:
    """Of each channel, (O,)."""
    return sums.transpose(0, 1).flatten(1).mean(1)


def _second_moments(node: Node, x: Tensor, weight: Tensor) -> Tensor:
    """Products of all pairs of a layer's inputs, summed over positions and images: (K, K) float64, damped."""
    if node.kind == "conv":
        stride, padding, dilation = (pair_of(node, name) for name in ("stride", "padding", "dilation"))
        columns = F.unfold(x, weight.shape[2:], dilation, padding, stride)  # (B, K, positions)
        x = columns.transpose(1, 2).flatten(0, 1)
    rows = x[:: max(1, len(x) // _MOST_ROWS)].double()
    moments = rows.t() @ rows
    level = moments.diagonal().mean() * _DAMPING
    # Inputs that are always zero say nothing of their weights, whatever the level.
    return moments + torch.eye(len(moments), dtype=moments.dtype, device=x.device) * (level if level > 0 else 1.0)


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
