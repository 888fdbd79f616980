"""Export to TensorRT: our ONNX in the precision asked for, built into an engine for one kind of NVIDIA GPU."""

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

from deploy.metadata import ExportMetadata, ExportSettings
from deploy.onnx.detector import detector_graph, onnx_metadata
from deploy.onnx.graph import save_onnx
from deploy.onnx.int8 import as_int8
from deploy.packages import optional_package
from deploy.tensorrt.build import BuildRequest, capabilities
from deploy.tensorrt.engine_file import FORMAT, EngineFile, write_engine
from models.detector import Detector
from utils.errors import ConfigError

# On small boards every way of computing every layer is tried out, which takes long.
BUILD_SECONDS = 3600
# Scratch memory that a layer may ask for; YOLOv5's default. TensorRT takes what it needs of it.
WORKSPACE_BYTES = 4 << 30
# A dynamic engine takes images up to so many times the height and width it is exported with, and so many at once.
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
    """Write a network as a TensorRT engine with its metadata; see `deploy.tensorrt.engine_file` for the layout.

    With `tensorrt` the engine is built on and for the GPU of this machine. With `tensorrt_rtx` it is built ahead of
    time for a named one, on any machine.

    Args:
        model: Dense or pruned; not touched.
        path: The file, its name ending in `.engine`.
        names: Class names by id.
        source_sha256: Of the weights file.
        settings: fp32 is computed without TF32. Dynamic engines take any batch, and sides from the stride to twice
            `image_hw`.
        calibration: For int8, images (1, 3, H, W) float32 RGB in [0, 1].
        int8_skip: Patterns of layers that stay in float32 in int8.
        compute_capability: Of the GPU that will run it, such as "8.9"; "" for the one of this machine.

    Raises:
        ConfigError: A name, precision, size or GPU that cannot be had, a missing package, a graph that TensorRT
            refuses or crashes on, or an unwritable folder.
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
    """What is written: the plan that a package builds of an ONNX graph, and what it is for."""
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
    """The ONNX graph that the engine is built from, of the engine's own types."""
    if metadata.precision != "int8":
        return detector_graph(model, metadata, opset=opset)
    full = detector_graph(model, replace(metadata, precision="fp32"), opset=opset)
    return as_int8(full, calibration, skip=int8_skip, for_tensorrt=True)


def _package(compute_capability: str) -> str:
    """Which package builds for a GPU: `tensorrt` for that of this machine, `tensorrt_rtx` for a named one.

    Raises:
        ConfigError: It is not installed, there is no GPU to build for, or the named one is not known.
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
                "tensorrt builds for the GPU of this machine, and torch finds none; export where there is one, "
                "or install tensorrt-rtx-cu12 and name a --compute-capability"
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
    """Smallest, usual and largest (B, 3, H, W) of a dynamic network; nothing for a fixed one."""
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
    """The plan, built in a child process.

    Raises:
        ConfigError: The child failed, crashed, or took too long.
    """
    # -P keeps this folder off the child's path: its onnx.py and openvino.py are not those that packages mean.
    command = [sys.executable, "-P", str(_CHILD), json.dumps(asdict(request))]
    try:
        child = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{request.package} was not done after {BUILD_SECONDS} s; "
            "free the GPU and the processors, or lower --img-size"
        ) from error
    if child.returncode != 0:
        raise ConfigError(
            f"{request.package} {_ending(child.returncode)}: {_reason(child.stdout.decode(errors='replace'))}; "
            "try another --opset or precision, or export to another format"
        )
    return Path(request.plan).read_bytes()


def _ending(code: int) -> str:
    """How a failed child ended; the system gives the number of a signal as a negative code."""
    return f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _reason(log: str) -> str:
    """The last line of a log; with it TensorRT's first error, from which the others follow."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = (lines or ["no output"])[-1]
    first = next((line.partition(_ERROR_MARK)[2] for line in lines if _ERROR_MARK in line), "")
    return f"{last} ({first})"[:_MAX_REASON] if first and first not in last else last[:_MAX_REASON]
