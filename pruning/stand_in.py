"""What a convolution puts out without computing it, for passes that need shapes and not numbers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def output_shape(layer: nn.Conv2d, images: Tensor) -> torch.Size:
    """Shape of a convolution's output; one of a single channel tells the size of the map.

    Args:
        layer: The convolution.
        images: (B, C_in, H, W).

    Raises:
        RuntimeError: It cannot run on such images.
    """
    if images.ndim != 4 or images.shape[1] != layer.in_channels:
        raise RuntimeError(f"a convolution of {layer.in_channels} channels is given {tuple(images.shape)}")
    kernel = images.new_zeros(1, 1, *layer.kernel_size)
    thin = F.conv2d(images[:1, :1], kernel, None, layer.stride, layer.padding, layer.dilation)
    return torch.Size((len(images), layer.out_channels, *thin.shape[2:]))
