"""TensorRT as a runtime: engines on an NVIDIA GPU that read and write torch tensors directly."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.packages import optional_package
from deploy.artefact.runtime import RuntimeModel
from deploy.outputs.outputs import INPUT_NAME
from deploy.settings import RuntimeOptions
from deploy.tensorrt.engine_file import EngineFile, read_engine
from utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def load_tensorrt(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a file that `write_tensorrt` wrote.

    Args:
        path: Path of the file.
        device: NVIDIA GPU of the compute capability that the engine was built for.
        options: Options of the runtime; `half` on an fp32 engine and `threads` give a warning.

    Raises:
        CheckpointError: The file is not an engine, is damaged, or was built for another GPU or version.
        ConfigError: The device is not a GPU, or the package that built the engine is not installed.
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
        logger.warning("threads: %s runs on the GPU; the option is ignored", path)
    with torch.cuda.device(device):
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(stored.plan)
    if engine is None:
        raise CheckpointError(
            f"{path} was built for {stored.built_for}, and {stored.package} {trt.__version__} does not load it on "
            f"{torch.cuda.get_device_name(device)}; export it again for this GPU"
        )
    session = EngineSession(engine, stored, path=path, device=device)
    return stored.metadata.runtime(session, path=path, device=device)


class EngineSession:
    """An engine as a function of tensors on its GPU.

    Args:
        engine: Engine, deserialised by TensorRT.
        stored: Content of the engine's file.
        path: Path of the file, for messages.
        device: GPU of the engine.
    """

    def __init__(self, engine: Any, stored: EngineFile, *, path: Path, device: torch.device) -> None:
        self._engine = engine  # kept, since the context needs it
        self._context = engine.create_execution_context()
        self._outputs = stored.metadata.output_names
        self._image_shapes = stored.image_shapes
        self._path = path
        self._device = device
        # A stream of its own: on the default one TensorRT waits for the GPU after every call.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs, float32, of images (B, C, H, W) in the form of network input, on the GPU.

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
                f"{self._path}: got images of {height}x{width} pixels, expected {smallest[2]}x{smallest[3]} to "
                f"{largest[2]}x{largest[3]}; export it with a larger --img-size"
            )
        parts = [self._run(part) for part in torch.split(images, largest[0])]
        return [torch.cat(level) for level in zip(*parts, strict=True)]

    def _run(self, images: Tensor) -> list[Tensor]:
        """Run the engine once."""
        context, outputs = self._context, []
        with torch.cuda.device(self._device):
            context.set_input_shape(INPUT_NAME, tuple(images.shape))
            context.set_tensor_address(INPUT_NAME, images.data_ptr())
            for name in self._outputs:
                outputs.append(torch.empty(tuple(context.get_tensor_shape(name)), device=self._device))
                context.set_tensor_address(name, outputs[-1].data_ptr())
            current = torch.cuda.current_stream(self._device)
            self._stream.wait_stream(current)
            is_done = context.execute_async_v3(self._stream.cuda_stream)
            # Later work that reads the outputs, or reuses the memory of the images, is on the current stream.
            current.wait_stream(self._stream)
        if not is_done:
            raise CheckpointError(f"{self._path}: TensorRT cannot run the engine; export it again for this GPU")
        return outputs
