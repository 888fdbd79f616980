"""Which loader reads which artefact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch

from deploy.formats import format_of
from deploy.integer.runtime import FORMAT as INTEGER_FORMAT
from deploy.integer.runtime import load_integer
from deploy.ncnn.runtime import FORMAT as NCNN_FORMAT
from deploy.ncnn.runtime import load_ncnn
from deploy.onnx.detector import load_onnx
from deploy.openvino import FORMAT as OPENVINO_FORMAT
from deploy.openvino import load_openvino
from deploy.pytorch import load_pytorch
from deploy.runtime import RuntimeModel, RuntimeOptions
from deploy.tensorrt.engine_file import FORMAT as TENSORRT_FORMAT
from deploy.tensorrt.runtime import load_tensorrt
from deploy.torchscript import load_torchscript
from utils.errors import CheckpointError, ConfigError

RuntimeLoader: TypeAlias = Callable[..., RuntimeModel]

# By the format: the end of the name that an export has; `deploy.formats` recognises it.
RUNTIMES: dict[str, RuntimeLoader] = {
    ".pt": load_pytorch,
    ".onnx": load_onnx,
    NCNN_FORMAT: load_ncnn,
    ".torchscript": load_torchscript,
    OPENVINO_FORMAT: load_openvino,
    TENSORRT_FORMAT: load_tensorrt,
    INTEGER_FORMAT: load_integer,
}


def load_runtime(path: str | Path, *, device: torch.device, options: RuntimeOptions | None = None) -> RuntimeModel:
    """Load an artefact with the runtime of its format.

    Args:
        path: The file or folder.
        device: Where to run.
        options: Precision, threads and cores.

    Raises:
        ConfigError: No runtime reads this format.
        CheckpointError: There is no such file, or it is damaged.
    """
    path = Path(path)
    form = format_of(path, RUNTIMES)
    if form is None and path.exists():
        raise ConfigError(f"weights {path}: unsupported format {path.suffix!r}; known: {', '.join(RUNTIMES)}")
    if form is None or not path.exists():
        raise CheckpointError(f"weights {path} do not exist; check the path (nothing is downloaded)")
    return RUNTIMES[form](path, device=device, options=options or RuntimeOptions())
