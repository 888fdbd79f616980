"""TensorRT as a runtime: engines on an NVIDIA GPU, fed with torch's own memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact import ArtefactRuntime
from deploy.onnx.detector import INPUT_NAME, head_names
from deploy.packages import optional_package
from deploy.runtime import RuntimeOptions
from deploy.tensorrt.engine_file import EngineFile, read_engine
from utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def load_tensorrt(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a file that `export_tensorrt` wrote.

    Args:
        path: The file.
        device: An NVIDIA GPU of the compute capability the engine was built for.
        options: Precision is that of the engine; what asks for another, or for threads, is a warning.

    Raises:
        CheckpointError: The file is of another kind, damaged, or built for another GPU or version.
        ConfigError: The device is no GPU, or the package that built the engine is not installed.
    """
    stored = read_engine(path)
    if device.type != "cuda":
        raise ConfigError(
            f"{path} runs on an NVIDIA GPU, got device {device}; use --device 0 where there is one, "
            "or export to ONNX, OpenVINO or ncnn for the CPU"
        )
    trt = optional_package(stored.package, purpose=str(path))
    if options.half and stored.metadata.precision == "fp32":
        logger.warning("half: %s computes in fp32, as it was exported", path)
    if options.threads:
        logger.warning("threads: %s computes on the GPU; the number is ignored", path)
    with torch.cuda.device(device):
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(stored.plan)
    if engine is None:
        raise CheckpointError(
            f"{path} was built for {stored.built_for}, and {stored.package} {trt.__version__} does not load it on "
            f"{torch.cuda.get_device_name(device)}; export it again for this GPU"
        )
    session = EngineSession(engine, stored, path=path, device=device)
    return ArtefactRuntime(session, stored.metadata, path=path, device=device)


class EngineSession:
    """An engine as a function of tensors on its GPU.

    Args:
        engine: Deserialised by TensorRT.
        stored: What the file says of it.
        path: Of the file, for messages.
        device: The GPU.
    """

    def __init__(self, engine: Any, stored: EngineFile, *, path: Path, device: torch.device) -> None:
        self._engine = engine  # the context lives no longer than its engine
        self._context = engine.create_execution_context()
        self._heads = head_names(stored.metadata)
        self._image_shapes = stored.image_shapes
        self._path = path
        self._device = device
        # On the default stream TensorRT waits for the GPU after every call.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] on the GPU to head maps (B, A * (5 + nc), h, w), float32.

        Raises:
            ConfigError: A dynamic engine was not built for images of this size.
        """
        images = images.float().contiguous()
        if not self._image_shapes:
            return self._run(images)
        smallest, _, largest = self._image_shapes
        height, width = images.shape[2:]
        if not (smallest[2] <= height <= largest[2] and smallest[3] <= width <= largest[3]):
            raise ConfigError(
                f"{self._path}: images of {height}x{width} pixels, expected {smallest[2]}x{smallest[3]} to "
                f"{largest[2]}x{largest[3]}; export it with a larger --img-size"
            )
        parts = [self._run(part) for part in torch.split(images, largest[0])]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def _run(self, images: Tensor) -> list[Tensor]:
        """One call of the engine."""
        context, heads = self._context, []
        with torch.cuda.device(self._device):
            context.set_input_shape(INPUT_NAME, tuple(images.shape))
            context.set_tensor_address(INPUT_NAME, images.data_ptr())
            for name in self._heads:
                heads.append(torch.empty(tuple(context.get_tensor_shape(name)), device=self._device))
                context.set_tensor_address(name, heads[-1].data_ptr())
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            is_done = context.execute_async_v3(self._stream.cuda_stream)
            # Whoever reads the heads or takes over the memory of the images does so on the current stream.
            current.wait_stream(self._stream)
        if not is_done:
            raise CheckpointError(f"{self._path}: TensorRT cannot run the engine; export it again for this GPU")
        return heads
