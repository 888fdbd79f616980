"""Shape of a convolution's output without computing it, for passes that need shapes and no values."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def output_shape(layer: nn.Conv2d, images: Tensor) -> torch.Size:
    """Return the shape of a convolution's output, found with a convolution of a single channel.

    Args:
        layer: The convolution.
        images: (B, C_in, H, W).

    Raises:
        RuntimeError: The convolution cannot run on such images.
    """
    if images.ndim != 4 or images.shape[1] != layer.in_channels:
        raise RuntimeError(f"a convolution of {layer.in_channels} channels got an input of {tuple(images.shape)}")
    kernel = images.new_zeros(1, 1, *layer.kernel_size)
    thin = F.conv2d(images[:1, :1], kernel, None, layer.stride, layer.padding, layer.dilation)
    return torch.Size((len(images), layer.out_channels, *thin.shape[2:]))
