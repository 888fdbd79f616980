"""OpenVINO: a folder with the graph, its weights and our metadata, made from our ONNX and run on the CPU."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.artefact import ArtefactRuntime, RunGraph
from deploy.artefact.folder import replaced_folder
from deploy.artefact.metadata import METADATA_NAME, ExportMetadata
from deploy.artefact.packages import optional_package
from deploy.choices import Precision
from deploy.formats import FORMATS
from deploy.onnx.detector import INPUT_NAME, export_onnx, head_names
from deploy.settings import ExportSettings, RuntimeOptions
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# Suffix of exported folders, and their files.
FORMAT = FORMATS["openvino"].suffix
GRAPH_NAME, WEIGHTS_NAME = FORMATS["openvino"].marker, "model.bin"
# Key under which the graph stores which network and weights it was made from.
_IDENTITY_KEY = "exported_from"
# 16-bit arithmetic, best first: OpenVINO's names for the capability and the setting, and our precision.
_SIXTEEN_BITS: tuple[tuple[str, str, Precision], ...] = (("BF16", "bf16", "bf16"), ("FP16", "f16", "fp16"))


def export_openvino(
    model: Detector,
    path: str | Path,
    *,
    names: Sequence[str],
    source_sha256: str,
    settings: ExportSettings,
    calibration: Sequence[Tensor] = (),
    int8_skip: Sequence[str] = (),
) -> ExportMetadata:
    """Write a detector as a folder for OpenVINO: `model.xml`, `model.bin` and `metadata.json`.

    The network is first exported to our ONNX, which OpenVINO's runtime reads; OpenVINO's own converter sends usage
    statistics.

    Args:
        model: Detector, dense or pruned; not changed.
        path: Folder whose name ends in `_openvino_model`; an earlier export there is replaced.
        names: Class names by id.
        source_sha256: SHA-256 of the weights file.
        settings: Settings of the export. fp16 halves the file, and the arithmetic is chosen when loading; int8 is
            computed in int8.
        calibration: Images (1, 3, H, W) float32 RGB in [0, 1], for int8.
        int8_skip: Patterns of layers that int8 keeps in float32.

    Raises:
        ConfigError: Unsupported precision, size or name, int8 without calibration images, a missing package, or an
            unwritable folder.
    """
    folder = Path(path)
    if not folder.name.endswith(FORMAT):
        raise ConfigError(f"OpenVINO folder {folder}: expected a name that ends in {FORMAT}")
    if settings.precision == "bf16":
        raise ConfigError("OpenVINO uses bf16 when it runs with --half; export it in fp32, fp16 or int8")
    openvino = optional_package("openvino", purpose="export to OpenVINO")
    is_half = settings.precision == "fp16"
    with replaced_folder(folder, marker=GRAPH_NAME) as new, tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "model.onnx")
        exported = export_onnx(
            model,
            source,
            names=names,
            source_sha256=source_sha256,
            # Only the file stores weights in 16 bits; the graph is in float32.
            settings=replace(settings, precision="fp32") if is_half else settings,
            calibration=calibration,
            int8_skip=int8_skip,
        )
        versions = {**exported.versions, "openvino": openvino.__version__}
        metadata = replace(exported, format=FORMAT, precision=settings.precision, versions=versions)
        graph = openvino.Core().read_model(source)
        graph.set_rt_info(_identity(metadata), _IDENTITY_KEY)
        openvino.save_model(graph, new / GRAPH_NAME, compress_to_fp16=is_half)
        (new / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")
    return metadata


def load_openvino(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a folder that `export_openvino` wrote; it runs on the CPU.

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
    metadata = ExportMetadata.from_folder(path)
    core = openvino.Core()
    graph = _read_graph(core, path, metadata)
    arithmetic, precision = "f32", metadata.precision
    if options.half:
        arithmetic, precision = _sixteen_bits(core, precision)
    hints = {"INFERENCE_PRECISION_HINT": arithmetic, "INFERENCE_NUM_THREADS": options.num_threads}
    compiled = core.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", **hints})
    metadata = replace(metadata, precision=precision)
    return ArtefactRuntime(_runner(compiled, metadata), metadata, path=path, device=torch.device("cpu"))


def _identity(metadata: ExportMetadata) -> str:
    return f"{metadata.spec_fingerprint} {metadata.source_sha256}"


def _read_graph(core: Any, path: Path, metadata: ExportMetadata) -> Any:
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


def _sixteen_bits(core: Any, exported: Precision) -> tuple[str, Precision]:
    """Return OpenVINO's name for this CPU's 16-bit arithmetic, and the precision that results for the artefact."""
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for capability, arithmetic, precision in _SIXTEEN_BITS:
        if capability in capabilities:
            return arithmetic, "int8" if exported == "int8" else precision
    logger.warning("half: this CPU has no 16-bit arithmetic; computing in fp32")
    return "f32", exported


def _runner(compiled: Any, metadata: ExportMetadata) -> RunGraph:
    """Build the function that runs the graph, from tensors to tensors."""
    heads = [compiled.output(name) for name in head_names(metadata)]
    request = compiled.create_infer_request()

    def run(images: Tensor) -> list[Tensor]:
        found = request.infer({INPUT_NAME: images.float().contiguous().numpy()})
        return [torch.from_numpy(found[head]) for head in heads]

    return run
