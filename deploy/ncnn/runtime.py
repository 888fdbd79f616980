"""ncnn as a runtime: the engine of phones and boards, on the processors of this machine."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.artefact import ArtefactRuntime, RunGraph
from deploy.checksums import check_checksums
from deploy.metadata import METADATA_NAME, ExportMetadata
from deploy.native_messages import native_messages
from deploy.ncnn.param import ParamLayer, input_blobs, output_blobs, read_param
from deploy.packages import optional_package
from deploy.runtime import Precision, RuntimeOptions
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

# How names of exported folders end; their files; the names that pnnx gives the ends of a network.
FORMAT = "_ncnn_model"
PARAM_NAME, BIN_NAME = "model.ncnn.param", "model.ncnn.bin"
INPUT_BLOB, OUTPUT_BLOB = "in0", "out{level}"


def load_ncnn(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a folder that `export_ncnn` wrote; it computes on the CPU, one image after the other.

    Args:
        path: The folder.
        device: Anything but a CPU is a warning.
        options: With `half`, fp16 on ARM cores that can, else bf16; without it all arithmetic is fp32, on weights
            of either size. int8 layers stay int8 in both.

    Raises:
        ConfigError: The ncnn package is not installed.
        CheckpointError: A file is missing, damaged, or of another model.
    """
    ncnn = optional_package("ncnn", purpose=str(path))
    if device.type != "cpu":
        logger.warning("%s: ncnn computes on the CPU here, not on %s", path, device)
    metadata = ExportMetadata.from_folder(path)
    _check_ends(path, read_param(path / PARAM_NAME), num_heads=len(metadata.strides))
    sixteen_bits: Precision | None = _sixteen_bits(ncnn) if options.half else None
    net = open_network(ncnn, path, options=options, sixteen_bits=sixteen_bits)
    if sixteen_bits is not None and metadata.precision != "int8":
        metadata = replace(metadata, precision=sixteen_bits)
    return ArtefactRuntime(_runner(ncnn, net, metadata, path=path), metadata, path=path, device=torch.device("cpu"))


def _check_ends(path: Path, layers: tuple[ParamLayer, ...], *, num_heads: int) -> None:
    """Refuse a network with other inputs and outputs than the metadata describe."""
    found = (*input_blobs(layers), *sorted(output_blobs(layers)))
    expected = (INPUT_BLOB, *(OUTPUT_BLOB.format(level=level) for level in range(num_heads)))
    if found != expected:
        raise CheckpointError(
            f"{path / PARAM_NAME}: inputs and outputs are {', '.join(found)}, expected {', '.join(expected)} "
            f"from {METADATA_NAME}; export it again"
        )


def _sixteen_bits(ncnn: Any) -> Precision:
    return "fp16" if ncnn.cpu_support_arm_asimdhp() else "bf16"


def open_network(
    ncnn: Any,
    path: Path,
    *,
    options: RuntimeOptions,
    sixteen_bits: Precision | None = None,
    keeps_blobs: bool = False,
) -> Any:
    """The loaded network.

    Args:
        ncnn: The package.
        path: The folder.
        options: Threads and cores.
        sixteen_bits: The arithmetic of layers that are not int8; None is fp32.
        keeps_blobs: Whether one pass can give any number of inner blobs, for more memory.

    Raises:
        CheckpointError: A file is missing, cut off, damaged, or another than was exported.
    """
    net = ncnn.Net()
    net.opt.lightmode = not keeps_blobs
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = options.num_threads
    # ncnn turns 16 bits on by itself where the processor has them; what was not asked for stays off.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = sixteen_bits == "fp16"
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = sixteen_bits == "bf16"
    ncnn.set_cpu_powersave(options.powersave)
    check_checksums(path)
    for load, name in ((net.load_param, PARAM_NAME), (net.load_model, BIN_NAME)):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} holds no {name}; export it again")
        with native_messages() as messages:
            code = load(str(path / name))
        if code != 0:
            reason = ", ".join(line.strip() for line in messages) or f"code {code}"
            raise CheckpointError(f"{path / name} is cut off or damaged ({reason}); export it again")
    return net


def _runner(ncnn: Any, net: Any, metadata: ExportMetadata, *, path: Path) -> RunGraph:
    """From tensors to tensors by way of numpy."""
    outputs = [OUTPUT_BLOB.format(level=level) for level in range(len(metadata.strides))]

    def run_one(picture: np.ndarray[Any, Any]) -> list[Tensor]:
        """(3, H, W) to head maps (A * (5 + nc), H / stride, W / stride)."""
        maps = []
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, ncnn.Mat(picture))
            for name in outputs:
                code, blob = extractor.extract(name)
                if code != 0:
                    raise CheckpointError(f"{path}: ncnn cannot compute {name} (code {code}); export it again")
                maps.append(torch.from_numpy(np.array(blob)))  # a copy: the blob goes with its extractor
        return maps

    def run(images: Tensor) -> list[Tensor]:
        per_image = [run_one(picture) for picture in images.float().cpu().contiguous().numpy()]
        return [torch.stack(level) for level in zip(*per_image, strict=True)]

    return run
