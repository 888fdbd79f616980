"""PyTorch as a runtime: fused batch norms, channels-last memory format, optionally 16-bit arithmetic."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from deploy.choices import Precision
from deploy.settings import RuntimeOptions
from models.detector import Detector
from models.fuse import fuse
from models.load import load_model
from utils.device import amp_dtype

logger = logging.getLogger(__name__)

_PRECISIONS: dict[torch.dtype | None, Precision] = {
    None: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


class PyTorchRuntime:
    """A `Detector` with the interface of `deploy.artefact.runtime.RuntimeModel`."""

    format = ".pt"
    input_hw: tuple[int, int] | None = None

    def __init__(self, model: Detector, *, names: tuple[str, ...], device: torch.device, half: bool = False) -> None:
        fused = fuse(model).to(device)
        self._model = fused.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._autocast = self._sixteen_bits(device) if half else None
        self.precision: Precision = _PRECISIONS[self._autocast]
        self.device = device
        self.names = names
        self.num_classes = model.spec.num_classes
        self.anchors = model.anchors.detach().to(device)
        self.strides = tuple(model.strides)

    @staticmethod
    def _sixteen_bits(device: torch.device) -> torch.dtype | None:
        if device.type == "cuda":
            return torch.float16
        dtype = amp_dtype(device)
        if dtype is None:
            logger.warning("half: this CPU has no 16-bit arithmetic; computing in fp32")
        return dtype

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute raw heads, float32, of images (B, 3, H, W) RGB in [0, 1]."""
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=self._autocast, enabled=self._autocast is not None):
            heads = self._model(images)
        return [head.float() for head in heads]


def load_pytorch(path: Path, *, device: torch.device, options: RuntimeOptions) -> PyTorchRuntime:
    """Load a checkpoint of this project, or an official YOLOv5 one."""
    if options.threads:
        torch.set_num_threads(options.threads)
    loaded = load_model(path)
    return PyTorchRuntime(loaded.model, names=loaded.names, device=device, half=options.half)
