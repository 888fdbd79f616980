"""Networks in ONNX, with input `images` and outputs `head0`, `head1`, ... or `logits`; run by onnxruntime."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch

from deploy.artefact.metadata import METADATA_NAME
from deploy.artefact.runtime import RuntimeModel
from deploy.choices import Precision
from deploy.formats import FORMATS
from deploy.job import ExportJob
from deploy.onnx.graph import GraphSettings, join_zeros_, open_session, run_session, save_onnx, trace_onnx
from deploy.onnx.int8 import as_int8
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
    graph = onnx_graph(job, metadata, precision=metadata.precision)
    save_onnx(graph, path, properties={METADATA_NAME: metadata.to_json()})
    return metadata


def onnx_graph(job: ExportJob, metadata: Metadata, *, precision: Precision, for_tensorrt: bool = False) -> Any:
    """Build the graph of a network, an `onnx.ModelProto`, without decoding.

    Args:
        job: Network, opset, and calibration images for int8.
        metadata: Metadata of the artefact, with the names and free axes of the outputs.
        precision: Precision of the graph.
        for_tensorrt: Whether int8 is for TensorRT; see `deploy.onnx.int8.as_int8`.

    Raises:
        ConfigError: Unsupported opset, or int8 without images of the right size.
    """
    network = job.source.network()
    join_zeros_(network)
    if precision == "fp16":
        network = HalfNetwork(network)
    settings = GraphSettings(
        inputs=[INPUT_NAME], outputs=metadata.output_names, opset=job.settings.opset, dynamic=metadata.free_axes
    )
    graph = trace_onnx(network, [job.example(metadata)], settings)
    if precision != "int8":
        return graph
    return as_int8(graph, job.calibration, skip=job.special.int8_skip, for_tensorrt=for_tensorrt)


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
