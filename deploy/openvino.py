"""OpenVINO: a folder with the graph, its weights and our metadata, made from our ONNX and run on the CPU."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.folder import replaced_folder
from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.packages import optional_package
from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.formats import FORMATS
from deploy.job import ExportJob
from deploy.onnx.graph import save_onnx
from deploy.onnx.int8 import FOR_OPENVINO
from deploy.onnx.network import int8_graph, onnx_graph
from deploy.outputs.metadata import Metadata, folder_metadata
from deploy.outputs.outputs import INPUT_NAME, RunGraph
from deploy.settings import RuntimeOptions
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

# Suffix of exported folders, and their files.
FORMAT = FORMATS["openvino"].suffix
GRAPH_NAME, WEIGHTS_NAME = FORMATS["openvino"].marker, "model.bin"
# Key under which the graph stores which network and weights it was made from.
_IDENTITY_KEY = "exported_from"
# 16-bit arithmetic, best first: OpenVINO's names for the capability and the setting, and our precision.
_SIXTEEN_BITS: tuple[tuple[str, str, Precision], ...] = (("BF16", "bf16", "bf16"), ("FP16", "f16", "fp16"))


def write_openvino(job: ExportJob, path: Path) -> Metadata:
    """Write a network as a folder for OpenVINO: `model.xml`, `model.bin` and `metadata.json`.

    The network is first exported to our ONNX, which OpenVINO's runtime reads; OpenVINO's own converter sends usage
    statistics. fp16 halves the file, and the arithmetic is chosen when loading; int8 is computed in int8.

    Raises:
        ConfigError: Unsupported precision, size or name, int8 without calibration images, a missing package, or an
            unwritable folder.
    """
    metadata = job.metadata("openvino", path)
    if metadata.precision == "int8":
        graph = int8_graph(job, metadata, FOR_OPENVINO, run=_run_here)
    else:
        # Only the file stores weights in 16 bits; the graph is in float32.
        graph = onnx_graph(job, metadata, precision="fp32")
    with replaced_folder(path, marker=GRAPH_NAME) as new:
        _save(graph, metadata, new)
    return metadata


def _save(onnx_model: Any, metadata: Metadata, folder: Path) -> None:
    """Convert a graph to OpenVINO's files, with the metadata beside them."""
    openvino = optional_package("openvino", purpose="export to OpenVINO")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "model.onnx")
        save_onnx(onnx_model, source, properties={})
        graph = openvino.Core().read_model(source)
    graph.set_rt_info(_identity(metadata), _IDENTITY_KEY)
    openvino.save_model(graph, folder / GRAPH_NAME, compress_to_fp16=metadata.precision == "fp16")
    (folder / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")


def _run_here(onnx_model: Any, metadata: Metadata, folder: Path, options: RuntimeOptions) -> RuntimeModel:
    _save(onnx_model, metadata, folder)
    return load_openvino(folder, device=torch.device("cpu"), options=options)


def load_openvino(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a folder that `write_openvino` wrote; it runs on the CPU.

    Args:
        path: Folder of the artefact.
        device: Requested device; any but the CPU gives a warning.
        options: Number of threads, and `half`: 16-bit arithmetic if the CPU has it. Without it arithmetic is fp32,
            whatever the weights are stored in, which OpenVINO would not choose by itself. int8 layers compute in int8
            with both.

    Raises:
        ConfigError: The openvino package is not installed.
        CheckpointError: A file is missing, damaged, or from another model.
    """
    openvino = optional_package("openvino", purpose=str(path))
    if device.type != "cpu":
        logger.warning("%s: OpenVINO runs on the CPU here, not on %s", path, device)
    metadata = folder_metadata(path)
    core = openvino.Core()
    graph = _read_graph(core, path, metadata)
    arithmetic, precision = "f32", metadata.precision
    if options.half:
        arithmetic, precision = _sixteen_bits(core, precision)
    hints = {"INFERENCE_PRECISION_HINT": arithmetic, "INFERENCE_NUM_THREADS": options.num_threads}
    compiled = core.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", **hints})
    metadata = replace(metadata, precision=precision)
    return metadata.runtime(_runner(compiled, metadata), path=path, device=torch.device("cpu"))


def _identity(metadata: Metadata) -> str:
    return " ".join(metadata.identity.values())


def _read_graph(core: Any, path: Path, metadata: Metadata) -> Any:
    """Read the graph with its weights.

    Raises:
        CheckpointError: A file is missing or truncated, or the metadata belong to another model.
    """
    for name in (GRAPH_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} contains no {name}; export it again")
    try:
        graph = core.read_model(path / GRAPH_NAME, path / WEIGHTS_NAME)
    except RuntimeError as error:
        # The message lists positions in OpenVINO's source first and the reason last.
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{path}: {GRAPH_NAME} or {WEIGHTS_NAME} is truncated or damaged ({reason}); export it again"
        ) from error
    found = graph.get_rt_info(_IDENTITY_KEY).astype(str) if graph.has_rt_info(_IDENTITY_KEY) else "elsewhere"
    if found != _identity(metadata):
        raise CheckpointError(f"{path}: {METADATA_NAME} belongs to another model than {GRAPH_NAME}; export it again")
    return graph


def has_fp16() -> bool:
    """Return whether OpenVINO computes in fp16 on this CPU, where it may; it prefers bf16.

    Raises:
        ConfigError: The openvino package is not installed.
    """
    core = optional_package("openvino", purpose="mixed precision of OpenVINO").Core()
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    known = [precision for capability, _, precision in _SIXTEEN_BITS if capability in capabilities]
    return known[:1] == ["fp16"]


def _sixteen_bits(core: Any, exported: Precision) -> tuple[str, Precision]:
    """Return OpenVINO's name for this CPU's 16-bit arithmetic, and the precision that results for the artefact."""
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for capability, arithmetic, precision in _SIXTEEN_BITS:
        if capability in capabilities:
            return arithmetic, "int8" if exported == "int8" else precision
    logger.warning("half: this CPU has no 16-bit arithmetic; computing in fp32")
    return "f32", exported


def _runner(compiled: Any, metadata: Metadata) -> RunGraph:
    """Build the function that runs the graph, from tensors to tensors."""
    outputs = [compiled.output(name) for name in metadata.output_names]
    request = compiled.create_infer_request()

    def run(images: Tensor) -> list[Tensor]:
        found = request.infer({INPUT_NAME: images.float().contiguous().numpy()})
        return [torch.from_numpy(found[output]) for output in outputs]

    return run
