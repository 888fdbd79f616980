"""Networks in ONNX, with input `images` and outputs `head0`, `head1`, ... or `logits`; run by onnxruntime."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.formats import FORMATS
from deploy.int8.calibration import Arithmetic, Layers
from deploy.int8.layers import int8_layers
from deploy.job import ExportJob
from deploy.onnx.graph import (
    GraphSettings,
    check_opset,
    join_zeros_,
    open_session,
    run_session,
    save_onnx,
    trace_onnx,
)
from deploy.onnx.int8 import FOR_ONNXRUNTIME, as_int8, stored_weights
from deploy.outputs.metadata import Metadata, read_metadata
from deploy.outputs.outputs import INPUT_NAME
from deploy.settings import RuntimeOptions
from models.prepare import HalfNetwork
from utils.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT = FORMATS["onnx"].suffix
# Property of a file whose graph returns boxes, not raw heads; see `deploy.onnx.nms`.
NMS_PROPERTY = "nms.json"


def write_onnx(job: ExportJob, path: Path) -> Metadata:
    """Write a network as ONNX with its metadata; inputs and outputs are float32 in every precision.

    Raises:
        ConfigError: Unsupported precision, opset or image size, int8 without images, a missing package, or an
            unwritable folder.
    """
    metadata = job.metadata("onnx", path)
    if metadata.precision == "int8":
        graph = int8_graph(job, metadata, FOR_ONNXRUNTIME)
    else:
        graph = onnx_graph(job, metadata, precision=metadata.precision)
    _save(graph, path, metadata)
    return metadata


def _save(graph: Any, path: Path, metadata: Metadata) -> None:
    save_onnx(graph, path, properties={METADATA_NAME: metadata.to_json()})


def _run_here(graph: Any, metadata: Metadata, folder: Path, options: RuntimeOptions) -> RuntimeModel:
    _save(graph, folder / "trial.onnx", metadata)
    return load_onnx(folder / "trial.onnx", device=torch.device("cpu"), options=options)


def int8_graph(
    job: ExportJob,
    metadata: Metadata,
    arithmetic: Arithmetic,
    *,
    run: Callable[[Any, Metadata, Path, RuntimeOptions], RuntimeModel] = _run_here,
) -> Any:
    """Build the graph of a network in int8, an `onnx.ModelProto`, without decoding.

    Args:
        job: Network, opset, and calibration images.
        metadata: Metadata of the artefact, with the names and free axes of the outputs.
        arithmetic: How the runtime that reads the graph computes.
        run: Function that loads a graph by way of files in a folder, for the search and for a budget; by default
            with onnxruntime.

    Raises:
        ConfigError: Unsupported opset, no images, or a pattern that matches no layer.
    """
    check_opset(job.settings.opset, is_int8=True)
    plain = onnx_graph(job, metadata, precision="fp32")

    def graph_of(layers: Layers) -> Any:
        return as_int8(plain, layers, rounds_results=arithmetic.rounding.rounded == "ends")

    def run_layers(layers: Layers, options: RuntimeOptions) -> RuntimeModel:
        with tempfile.TemporaryDirectory() as scratch:
            return run(graph_of(layers), metadata, Path(scratch), options)

    return graph_of(int8_layers(job, arithmetic, metadata=metadata, stored=stored_weights(plain), run=run_layers))


def onnx_graph(job: ExportJob, metadata: Metadata, *, precision: Precision) -> Any:
    """Build the graph of a network in floating point, an `onnx.ModelProto`, without decoding.

    Args:
        job: Network and opset.
        metadata: Metadata of the artefact, with the names and free axes of the outputs.
        precision: Precision of the graph, fp32 or fp16.

    Raises:
        ConfigError: Unsupported opset.
    """
    network = job.source.network()
    join_zeros_(network)
    if precision == "fp16":
        network = HalfNetwork(network)
    settings = GraphSettings(
        inputs=[INPUT_NAME], outputs=metadata.output_names, opset=job.settings.opset, dynamic=metadata.free_axes
    )
    return trace_onnx(network, [job.example(metadata)], settings)


def load_onnx(path: Path, *, device: torch.device, options: RuntimeOptions) -> RuntimeModel:
    """Load a file that `write_onnx` wrote.

    Raises:
        CheckpointError: The file is damaged, contains no metadata, or returns boxes instead of raw heads.
        ConfigError: onnxruntime is not installed.
    """
    session = open_session(path, device=device, threads=options.num_threads)
    properties = session.get_modelmeta().custom_metadata_map
    if NMS_PROPERTY in properties:
        raise CheckpointError(
            f"{path} returns boxes, not raw heads; run it with onnxruntime itself, or export it again without --nms"
        )
    metadata = read_metadata(properties.get(METADATA_NAME, ""), where=path)
    if options.half and metadata.precision != "fp16":
        logger.warning("half: %s computes in %s, as it was exported", path, metadata.precision)
    return metadata.runtime(partial(run_session, session), path=path, device=device)
