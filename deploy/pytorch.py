"""PyTorch as a runtime: channels-last memory format, optionally 16-bit arithmetic."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from deploy.choices import Precision
from utils.device import amp_dtype

logger = logging.getLogger(__name__)

_PRECISIONS: dict[torch.dtype | None, Precision] = {
    None: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


class TorchRun:
    """A network as a function from images to its outputs.

    Attributes:
        precision: Precision that it computes in.

    Args:
        network: Network that returns several tensors, in evaluation mode; moved to the device.
        device: Device to run on.
        half: Whether to compute in 16 bits if the device supports it.
    """

    def __init__(self, network: nn.Module, *, device: torch.device, half: bool = False) -> None:
        self._network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._autocast = _sixteen_bits(device) if half else None
        self._device = device
        self.precision = _PRECISIONS[self._autocast]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs, float32, of images (B, C, H, W)."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
            outputs = self._network(images)
        return [output.float() for output in outputs]


def _sixteen_bits(device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        return torch.float16
    dtype = amp_dtype(device)
    if dtype is None:
        logger.warning("half: this CPU has no 16-bit arithmetic; computing in fp32")
    return dtype
