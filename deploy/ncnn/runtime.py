"""ncnn as a runtime: the engine for phones and boards, on this machine's CPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy.artefact.checksums import check_checksums
from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.packages import optional_package
from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.formats import FORMATS
from deploy.native_messages import native_messages
from deploy.ncnn.param import ParamLayer, input_blobs, output_blobs, read_param
from deploy.outputs.metadata import folder_metadata
from deploy.outputs.outputs import RunGraph
from deploy.settings import RuntimeOptions
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

# Suffix of exported folders, their files, and pnnx's names for the input and outputs of a network.
FORMAT = FORMATS["ncnn"].suffix
PARAM_NAME, BIN_NAME = FORMATS["ncnn"].marker, "model.ncnn.bin"
INPUT_BLOB, OUTPUT_BLOB = "in0", "out{level}"


def load_ncnn(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a folder that `write_ncnn` wrote; it runs on the CPU, one image after the other.

    Args:
        path: Folder of the artefact.
        device: Requested device; any but the CPU gives a warning.
        options: Threads, cores, and `half`: fp16 on ARM cores that support it, else bf16. Without it arithmetic is
            fp32, whatever the weights are stored in. int8 layers compute in int8 with both.

    Raises:
        ConfigError: The ncnn package is not installed.
        CheckpointError: A file is missing, damaged, or from another model.
    """
    ncnn = optional_package("ncnn", purpose=str(path))
    if device.type != "cpu":
        logger.warning("%s: ncnn runs on the CPU here, not on %s", path, device)
    metadata = folder_metadata(path)
    outputs = [OUTPUT_BLOB.format(level=level) for level in range(len(metadata.output_names))]
    _check_ends(path, read_param(path / PARAM_NAME), outputs=outputs)
    sixteen_bits: Precision | None = sixteen_bits_of(ncnn) if options.half else None
    net = open_network(ncnn, path, options=options, sixteen_bits=sixteen_bits)
    if sixteen_bits is not None and metadata.precision != "int8":
        metadata = replace(metadata, precision=sixteen_bits)
    return metadata.runtime(_runner(ncnn, net, outputs, path=path), path=path, device=torch.device("cpu"))


def _check_ends(path: Path, layers: tuple[ParamLayer, ...], *, outputs: Sequence[str]) -> None:
    """Refuse a network whose inputs and outputs differ from those in the metadata."""
    found = (*input_blobs(layers), *sorted(output_blobs(layers)))
    expected = (INPUT_BLOB, *outputs)
    if found != expected:
        raise CheckpointError(
            f"{path / PARAM_NAME}: inputs and outputs are {', '.join(found)}, expected {', '.join(expected)} "
            f"from {METADATA_NAME}; export it again"
        )


def sixteen_bits_of(ncnn: Any) -> Precision:
    """Return the 16-bit arithmetic of this CPU: fp16 where ARM cores have it, else bf16."""
    return "fp16" if ncnn.cpu_support_arm_asimdhp() else "bf16"


def has_fp16() -> bool:
    """Return whether this CPU computes in fp16.

    Raises:
        ConfigError: The ncnn package is not installed.
    """
    return sixteen_bits_of(optional_package("ncnn", purpose="mixed precision of ncnn")) == "fp16"


def open_network(
    ncnn: Any,
    path: Path,
    *,
    options: RuntimeOptions,
    sixteen_bits: Precision | None = None,
    keeps_blobs: bool = False,
) -> Any:
    """Load the network of a folder.

    Args:
        ncnn: The ncnn package.
        path: Folder of the artefact.
        options: Threads and cores.
        sixteen_bits: Arithmetic of layers that are not int8; None for fp32.
        keeps_blobs: Whether one pass can return any number of inner blobs, at the cost of memory.

    Raises:
        CheckpointError: A file is missing, truncated, damaged, or not the one that was exported.
    """
    net = ncnn.Net()
    net.opt.lightmode = not keeps_blobs
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = options.num_threads
    # ncnn turns 16-bit arithmetic on by itself where the CPU has it, so it is turned off unless requested.
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = sixteen_bits == "fp16"
    net.opt.use_bf16_packed = net.opt.use_bf16_storage = sixteen_bits == "bf16"
    ncnn.set_cpu_powersave(options.powersave)
    check_checksums(path)
    for load, name in ((net.load_param, PARAM_NAME), (net.load_model, BIN_NAME)):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} contains no {name}; export it again")
        with native_messages() as messages:
            code = load(str(path / name))
        if code != 0:
            reason = ", ".join(line.strip() for line in messages) or f"code {code}"
            raise CheckpointError(f"{path / name} is truncated or damaged ({reason}); export it again")
    return net


def _runner(ncnn: Any, net: Any, outputs: Sequence[str], *, path: Path) -> RunGraph:
    """Build the function that runs the network, from tensors to tensors."""

    def run_one(picture: np.ndarray[Any, Any]) -> list[Tensor]:
        """Compute the outputs of an image (C, H, W)."""
        found = []
        with net.create_extractor() as extractor:
            extractor.input(INPUT_BLOB, ncnn.Mat(picture))
            for name in outputs:
                code, blob = extractor.extract(name)
                if code != 0:
                    raise CheckpointError(f"{path}: ncnn cannot compute {name} (code {code}); export it again")
                found.append(torch.from_numpy(np.array(blob)))  # a copy: the extractor frees it
        return found

    def run(images: Tensor) -> list[Tensor]:
        per_image = [run_one(picture) for picture in images.float().cpu().contiguous().numpy()]
        return [torch.stack(level) for level in zip(*per_image, strict=True)]

    return run
