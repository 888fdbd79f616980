"""Export to TensorRT: our ONNX in the requested precision, built into an engine for one kind of NVIDIA GPU."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import torch

from deploy.artefact.packages import optional_package
from deploy.job import ExportJob
from deploy.onnx.graph import save_onnx
from deploy.onnx.int8 import FOR_TENSORRT
from deploy.onnx.network import int8_graph, onnx_graph
from deploy.outputs.metadata import Metadata
from deploy.tensorrt.build import BuildRequest, capabilities
from deploy.tensorrt.engine_file import EngineFile, write_engine
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


def write_tensorrt(job: ExportJob, path: Path) -> Metadata:
    """Write a network as a TensorRT engine with its metadata; see `deploy.tensorrt.engine_file` for the layout.

    With `tensorrt` the engine is built on and for this machine's GPU. With `tensorrt_rtx` it is built ahead of time,
    on any machine, for the compute capability of the job. fp32 is computed without TF32. Dynamic engines of detectors
    take any batch size, and sides from the stride to twice those exported; those of classifiers take any batch size.

    Raises:
        ConfigError: Unsupported name, precision, size or GPU, a missing package, a graph that TensorRT refuses or
            crashes on, or an unwritable folder.
    """
    package = _package(job.special.compute_capability)
    version = str(optional_package(package, purpose="export to TensorRT").__version__)
    exported = job.metadata("tensorrt", path)
    metadata = replace(exported, versions={**exported.versions, package: version})
    write_engine(path, _engine(job, metadata, package=package))
    return metadata


def _engine(job: ExportJob, metadata: Metadata, *, package: str) -> EngineFile:
    """Build the plan of a network, and return it with the facts about it."""
    capability = job.special.compute_capability
    shapes = image_shapes(metadata, batch_size=job.settings.batch_size)
    if metadata.precision == "int8":
        graph = int8_graph(job, metadata, FOR_TENSORRT)
    else:
        graph = onnx_graph(job, metadata, precision=metadata.precision)
    with tempfile.TemporaryDirectory() as scratch:
        source, plan = Path(scratch, "model.onnx"), Path(scratch, "model.plan")
        save_onnx(graph, source, properties={})
        request = BuildRequest(
            package=package,
            source=str(source),
            plan=str(plan),
            workspace_bytes=WORKSPACE_BYTES,
            compute_capability=capability,
            image_shapes=shapes,
        )
        return EngineFile(
            metadata=metadata,
            package=package,
            compute_capability=capability or _own_capability(),
            image_shapes=shapes,
            plan=_built(request),
        )


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


def image_shapes(metadata: Metadata, *, batch_size: int) -> tuple[tuple[int, ...], ...]:
    """Return the smallest, usual and largest (B, C, H, W) of a network with free axes; empty for a fixed one."""
    if not metadata.free_axes:
        return ()
    channels, *usual = metadata.image_chw
    smallest = largest = usual
    if metadata.input_hw is None:
        smallest, largest = [metadata.stride] * 2, [_LARGEST_SIDES * side for side in usual]
    batches = 1, batch_size, max(batch_size, _LARGEST_BATCH)
    return tuple((batch, channels, *hw) for batch, hw in zip(batches, (smallest, usual, largest), strict=True))


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
