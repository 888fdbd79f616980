"""Detectors in ONNX, with input `images` and outputs `head0`, `head1`, ...; run by onnxruntime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.artefact import ArtefactRuntime
from deploy.artefact.metadata import METADATA_NAME, ExportMetadata
from deploy.formats import FORMATS
from deploy.onnx.graph import (
    GraphSettings,
    join_zeros_,
    onnx_package,
    open_session,
    run_session,
    save_onnx,
    trace_onnx,
)
from deploy.onnx.int8 import as_int8
from deploy.settings import ExportSettings, RuntimeOptions
from models.detector import Detector
from models.prepare import HalfNetwork, ready_for_export
from utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

FORMAT = FORMATS["onnx"].suffix
INPUT_NAME = "images"
# Property of a file whose graph returns boxes, not raw heads; see `deploy.onnx.nms`.
NMS_PROPERTY = "nms.json"


def export_onnx(
    model: Detector,
    path: str | Path,
    *,
    names: Sequence[str],
    source_sha256: str,
    settings: ExportSettings,
    calibration: Sequence[Tensor] = (),
    int8_skip: Sequence[str] = (),
) -> ExportMetadata:
    """Write a detector as ONNX with its metadata; inputs and outputs are float32 in every precision.

    Args:
        model: Detector, dense or pruned; not changed.
        path: Path of the file.
        names: Class names by id.
        source_sha256: SHA-256 of the weights file.
        settings: Image size, opset, and precision fp32, fp16 or int8; for int8 see `deploy.onnx.int8`.
        calibration: Images (1, 3, H, W) RGB in [0, 1] of the exported size, for int8.
        int8_skip: Patterns of layers that int8 keeps in float32.

    Raises:
        ConfigError: Unsupported precision, opset or image size, int8 without images, a missing package, or an
            unwritable folder.
    """
    metadata = onnx_metadata(model, names=names, source_sha256=source_sha256, settings=settings)
    graph = detector_graph(model, metadata, opset=settings.opset, calibration=calibration, int8_skip=int8_skip)
    save_onnx(graph, path, properties={METADATA_NAME: metadata.to_json()})
    return metadata


def onnx_metadata(
    model: Detector, *, names: Sequence[str], source_sha256: str, settings: ExportSettings
) -> ExportMetadata:
    """Build the metadata of a file to export.

    Raises:
        ConfigError: Unsupported precision or image size, or no onnx package.
    """
    if settings.precision not in ("fp32", "fp16", "int8"):
        raise ConfigError(f"ONNX in {settings.precision} is not supported; expected fp32, fp16 or int8")
    return ExportMetadata.of(
        model,
        format=FORMAT,
        names=names,
        source_sha256=source_sha256,
        settings=settings,
        versions={"onnx": onnx_package().__version__},
    )


def detector_graph(
    model: Detector,
    metadata: ExportMetadata,
    *,
    opset: int,
    calibration: Sequence[Tensor] = (),
    int8_skip: Sequence[str] = (),
) -> Any:
    """Build the raw-head graph of a detector, an `onnx.ModelProto`, in the precision of the metadata.

    Raises:
        ConfigError: Unsupported opset, or int8 without images of the right size.
    """
    network = ready_for_export(model)
    join_zeros_(network)
    if metadata.precision == "fp16":
        network = HalfNetwork(network)
    outputs = head_names(metadata)
    free = free_axes([INPUT_NAME, *outputs], metadata)
    settings = GraphSettings(inputs=[INPUT_NAME], outputs=outputs, opset=opset, dynamic=free)
    graph = trace_onnx(network, [torch.zeros(metadata.batch_size, 3, *metadata.image_hw)], settings)
    return as_int8(graph, calibration, skip=int8_skip) if metadata.precision == "int8" else graph


def head_names(metadata: ExportMetadata) -> list[str]:
    """Return the names of the outputs, finest grid first."""
    return [f"head{level}" for level in range(len(metadata.strides))]


def free_axes(names: Sequence[str], metadata: ExportMetadata) -> dict[str, dict[int, str]]:
    """Return names for the axes of free size, by the name of the map; none for an export of fixed size."""
    if not metadata.dynamic:
        return {}
    return {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in names}


def load_onnx(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a file that `export_onnx` wrote.

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
    metadata = ExportMetadata.from_json(properties.get(METADATA_NAME, ""), where=path)
    if options.half and metadata.precision != "fp16":
        logger.warning("half: %s computes in %s, as it was exported", path, metadata.precision)
    return ArtefactRuntime(partial(run_session, session), metadata, path=path, device=device)
