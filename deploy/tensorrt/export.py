"""Export to TensorRT: our ONNX in the requested precision, built into an engine for one kind of NVIDIA GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.metadata import ExportMetadata
from deploy.artefact.packages import optional_package
from deploy.onnx.detector import detector_graph, onnx_metadata
from deploy.onnx.graph import save_onnx
from deploy.onnx.int8 import as_int8
from deploy.settings import ExportSettings
from deploy.tensorrt.build import BuildRequest, capabilities
from deploy.tensorrt.engine_file import FORMAT, EngineFile, write_engine
from models.detector import Detector
from utils.errors import ConfigError

# TensorRT tries every implementation of every layer, which takes long on small boards.
BUILD_SECONDS = 3600
# Scratch memory that a layer may request; YOLOv5's default. TensorRT takes only as much as it needs.
WORKSPACE_BYTES = 4 << 30
# Limits of a dynamic engine: sides, as multiples of the exported height and width, and batch size.
_LARGEST_SIDES, _LARGEST_BATCH = 2, 8
_CHILD = Path(__file__).with_name("build.py")
_ERROR_MARK = "[TRT] [E] "
_MAX_REASON = 300


def export_tensorrt(
    model: Detector,
    path: str | Path,
    *,
    names: Sequence[str],
    source_sha256: str,
    settings: ExportSettings,
    calibration: Sequence[Tensor] = (),
    int8_skip: Sequence[str] = (),
    compute_capability: str = "",
) -> ExportMetadata:
    """Write a detector as a TensorRT engine with its metadata; see `deploy.tensorrt.engine_file` for the layout.

    With `tensorrt` the engine is built on and for this machine's GPU. With `tensorrt_rtx` it is built ahead of time,
    on any machine, for a given compute capability.

    Args:
        model: Detector, dense or pruned; not changed.
        path: Path of the file, which ends in `.engine`.
        names: Class names by id.
        source_sha256: SHA-256 of the weights file.
        settings: Settings of the export. fp32 is computed without TF32. Dynamic engines take any batch size, and
            sides from the stride to twice `image_hw`.
        calibration: Images (1, 3, H, W) float32 RGB in [0, 1], for int8.
        int8_skip: Patterns of layers that int8 keeps in float32.
        compute_capability: Compute capability of the GPU to build for, such as "8.9"; "" for this machine's.

    Raises:
        ConfigError: Unsupported name, precision, size or GPU, a missing package, a graph that TensorRT refuses or
            crashes on, or an unwritable folder.
    """
    path = Path(path)
    if path.suffix != FORMAT:
        raise ConfigError(f"TensorRT engine {path}: expected a name that ends in {FORMAT}")
    if settings.precision == "bf16":
        raise ConfigError("TensorRT in bf16 is not supported; expected fp32, fp16 or int8")
    package = _package(compute_capability)
    version = str(optional_package(package, purpose="export to TensorRT").__version__)
    exported = onnx_metadata(model, names=names, source_sha256=source_sha256, settings=settings)
    metadata = replace(exported, format=FORMAT, versions={**exported.versions, package: version})
    graph = _source(model, metadata, opset=settings.opset, calibration=calibration, int8_skip=int8_skip)
    write_engine(path, _engine(graph, metadata, package=package, compute_capability=compute_capability))
    return metadata


def _engine(graph: Any, metadata: ExportMetadata, *, package: str, compute_capability: str) -> EngineFile:
    """Build the plan of an ONNX graph, and return it with the facts about it."""
    shapes = _image_shapes(metadata)
    with tempfile.TemporaryDirectory() as scratch:
        source, plan = Path(scratch, "model.onnx"), Path(scratch, "model.plan")
        save_onnx(graph, source, properties={})
        request = BuildRequest(
            package=package,
            source=str(source),
            plan=str(plan),
            workspace_bytes=WORKSPACE_BYTES,
            compute_capability=compute_capability,
            image_shapes=shapes,
        )
        return EngineFile(
            metadata=metadata,
            package=package,
            compute_capability=compute_capability or _own_capability(),
            image_shapes=shapes,
            plan=_built(request),
        )


def _source(
    model: Detector,
    metadata: ExportMetadata,
    *,
    opset: int,
    calibration: Sequence[Tensor],
    int8_skip: Sequence[str],
) -> Any:
    """Build the ONNX graph that the engine is built from, with the engine's types."""
    if metadata.precision != "int8":
        return detector_graph(model, metadata, opset=opset)
    full = detector_graph(model, replace(metadata, precision="fp32"), opset=opset)
    return as_int8(full, calibration, skip=int8_skip, for_tensorrt=True)


def _package(compute_capability: str) -> str:
    """Choose the package that builds for a GPU: `tensorrt` for this machine's, `tensorrt_rtx` for any other.

    Raises:
        ConfigError: It is not installed, there is no GPU to build for, or the compute capability is not known.
    """
    has_tensorrt, has_rtx = (find_spec(name) is not None for name in ("tensorrt", "tensorrt_rtx"))
    if not has_tensorrt and not has_rtx:
        raise ConfigError(
            "export to TensorRT needs a package; run: pip install tensorrt (on the machine with the GPU), "
            "or pip install tensorrt-rtx-cu12 (on any machine, with --compute-capability)"
        )
    if has_tensorrt and not compute_capability:
        if not torch.cuda.is_available():
            raise ConfigError(
                "tensorrt builds for the GPU of this machine, and torch finds none; export on a machine with one, "
                "or install tensorrt-rtx-cu12 and give a --compute-capability"
            )
        return "tensorrt"
    if not has_rtx:
        raise ConfigError(
            f"--compute-capability {compute_capability}: tensorrt builds for the GPU of this machine only; "
            "leave it out, or run: pip install tensorrt-rtx-cu12"
        )
    known = capabilities(optional_package("tensorrt_rtx", purpose="export to TensorRT"))
    if compute_capability not in known:
        raise ConfigError(
            f"--compute-capability: got {compute_capability!r}, "
            f"known: {', '.join(known)}; that of a GPU is in NVIDIA's table of CUDA GPUs"
        )
    return "tensorrt_rtx"


def _own_capability() -> str:
    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def _image_shapes(metadata: ExportMetadata) -> tuple[tuple[int, ...], ...]:
    """Return the smallest, usual and largest (B, 3, H, W) of a dynamic network; empty for a fixed one."""
    if not metadata.dynamic:
        return ()
    stride = max(metadata.strides)
    height, width = metadata.image_hw
    largest_batch = max(metadata.batch_size, _LARGEST_BATCH)
    return (
        (1, 3, stride, stride),
        (metadata.batch_size, 3, height, width),
        (largest_batch, 3, _LARGEST_SIDES * height, _LARGEST_SIDES * width),
    )


def _built(request: BuildRequest) -> bytes:
    """Build the plan in a child process.

    Raises:
        ConfigError: The child failed, crashed, or took too long.
    """
    # -P keeps this folder off the child's import path, where no file of ours may hide a package of the same name.
    command = [sys.executable, "-P", str(_CHILD), json.dumps(asdict(request))]
    try:
        child = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{request.package} did not finish within {BUILD_SECONDS} s; "
            "free the GPU and CPU cores, or lower --img-size"
        ) from error
    if child.returncode != 0:
        raise ConfigError(
            f"{request.package} {_ending(child.returncode)}: {_reason(child.stdout.decode(errors='replace'))}; "
            "try another --opset or precision, or export to another format"
        )
    return Path(request.plan).read_bytes()


def _ending(code: int) -> str:
    """Describe how a failed child ended; a negative code is that of a signal."""
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _reason(log: str) -> str:
    """Return the last line of a log, with TensorRT's first error, which causes the others."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = (lines or ["no output"])[-1]
    first = next((line.partition(_ERROR_MARK)[2] for line in lines if _ERROR_MARK in line), "")
    return f"{last} ({first})"[:_MAX_REASON] if first and first not in last else last[:_MAX_REASON]
