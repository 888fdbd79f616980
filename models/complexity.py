"""The size of a network: parameters, and multiply-adds for one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from models.copies import twin_with_numbers, twin_without_numbers


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable values; a shared one counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_chw: tuple[int, int, int]) -> int:
    """Return the multiply-adds of all convolutions and linear layers for one image.

    Activations, norms, pooling, additions and the matrix products of attention are not counted.

    Args:
        model: Network that takes one batch of images; it is not changed.
        image_chw: Channels, height and width of an image.

    Raises:
        RuntimeError: The network cannot run on such images.
    """
    return macs_of_uses(model, weight_uses(model, image_chw))


def macs_of_uses(model: nn.Module, uses: Mapping[str, int]) -> int:
    """Return the multiply-adds, given how often each value of a layer's weight is used, by layer path."""
    return sum(model.get_parameter(f"{name}.weight").numel() * count for name, count in uses.items())


def weight_uses(model: nn.Module, image_chw: tuple[int, int, int]) -> dict[str, int]:
    """Return how often each value of a layer's weight is used for one image.

    It is used once per position of the output, or of the input of a transposed convolution.

    Args:
        model: Network as for `count_macs`.
        image_chw: Image shape as for `count_macs`.

    Returns:
        Number of uses by path, for each convolution and linear layer that runs.

    Raises:
        RuntimeError: The network cannot run on such images.
    """
    uses: dict[str, int] = {}
    for name, calls in layer_shapes(model, image_chw).items():
        layer = model.get_submodule(name)
        uses[name] = sum(_positions(layer, shape_in, shape_out) for shape_in, shape_out in calls)
    return uses


def layer_shapes(model: nn.Module, image_chw: tuple[int, int, int]) -> dict[str, list[tuple[torch.Size, torch.Size]]]:
    """Return the shapes of the input and the output of each call of a layer for one image.

    Args:
        model: Network as for `count_macs`.
        image_chw: Image shape as for `count_macs`.

    Returns:
        Pairs of shapes by path, for each convolution and linear layer that runs.

    Raises:
        RuntimeError: The network cannot run on such images.
    """
    try:
        return _layer_shapes(twin_without_numbers(model), torch.empty(1, *image_chw, device="meta"))
    except RuntimeError:
        # Some block reads values, which tensors on the meta device do not have.
        return _layer_shapes(twin_with_numbers(model), torch.zeros(1, *image_chw))


@torch.no_grad()
def _layer_shapes(twin: nn.Module, image: torch.Tensor) -> dict[str, list[tuple[torch.Size, torch.Size]]]:
    """Note the shapes on a copy that may be changed."""
    shapes: dict[str, list[tuple[torch.Size, torch.Size]]] = {}

    def note(name: str, args: tuple[Any, ...], output: torch.Tensor) -> None:
        shapes.setdefault(name, []).append((args[0].shape, output.shape))

    for name, layer in twin.named_modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            layer.register_forward_hook(lambda layer, args, output, name=name: note(name, args, output))
    twin(image.to(_dtype(twin)))
    return shapes


def _positions(layer: nn.Module, shape_in: torch.Size, shape_out: torch.Size) -> int:
    """Return how often one call of a layer uses each value of its weight."""
    if isinstance(layer, _ConvTransposeNd):
        return shape_in.numel() // layer.in_channels
    if isinstance(layer, _ConvNd):
        return shape_out.numel() // layer.out_channels
    return shape_out.numel() // shape_out[-1]


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the type of a network's first floating-point parameter; float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
