"""OpenVINO: a folder with the graph, its weights and our metadata, read from our ONNX and run on the processor."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact import ArtefactRuntime, RunGraph
from deploy.artefact_folder import replaced_folder
from deploy.metadata import METADATA_NAME, ExportMetadata, ExportSettings
from deploy.onnx.detector import INPUT_NAME, export_onnx, head_names
from deploy.packages import optional_package
from deploy.runtime import Precision, RuntimeOptions
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# How names of exported folders end; their files.
FORMAT = "_openvino_model"
GRAPH_NAME, WEIGHTS_NAME = "model.xml", "model.bin"
# Under this key the graph tells which network and weights it was made from.
_IDENTITY_KEY = "exported_from"
# What OpenVINO calls arithmetic in 16 bits: its name for the capability and for the setting, and ours. Best first.
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
    """Write a network as a folder for OpenVINO: `model.xml`, `model.bin` and `metadata.json`.

    The way leads through our ONNX, which the runtime reads by itself; OpenVINO's converter sends usage statistics.

    Args:
        model: Dense or pruned; not touched.
        path: The folder, its name ending in `_openvino_model`; an earlier export there is replaced.
        names: Class names by id.
        source_sha256: Of the weights file.
        settings: fp16 halves the file, the arithmetic is chosen where it runs; int8 is computed in int8.
        calibration: For int8, images (1, 3, H, W) float32 RGB in [0, 1].
        int8_skip: Patterns of layers that stay in float32 in int8.

    Raises:
        ConfigError: A precision, size or name that cannot be had, int8 without calibration images, a missing
            package, or an unwritable folder.
    """
    folder = Path(path)
    if not folder.name.endswith(FORMAT):
        raise ConfigError(f"OpenVINO folder {folder}: expected a name that ends in {FORMAT}")
    if settings.precision == "bf16":
        raise ConfigError("OpenVINO in bf16 is chosen where it runs, with --half; export it in fp32, fp16 or int8")
    openvino = optional_package("openvino", purpose="export to OpenVINO")
    is_half = settings.precision == "fp16"
    with replaced_folder(folder, marker=GRAPH_NAME) as new, tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "model.onnx")
        exported = export_onnx(
            model,
            source,
            names=names,
            source_sha256=source_sha256,
            # Weights in 16 bits are a matter of the file here; the graph stays in float32.
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
    """Load a folder that `export_openvino` wrote; it computes on the processor.

    Args:
        path: The folder.
        device: Anything but a CPU is a warning.
        options: With `half`, 16-bit arithmetic where the processor has it; without it fp32 on weights of either
            size, which OpenVINO would not choose by itself. int8 layers stay int8 in both.

    Raises:
        ConfigError: The openvino package is not installed.
        CheckpointError: A file is missing, damaged, or of another model.
    """
    openvino = optional_package("openvino", purpose=str(path))
    if device.type != "cpu":
        logger.warning("%s: OpenVINO computes on the CPU here, not on %s", path, device)
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
    """The graph with its weights.

    Raises:
        CheckpointError: A file is missing or cut off, or the metadata are of another model.
    """
    for name in (GRAPH_NAME, WEIGHTS_NAME):
        if not (path / name).is_file():
            raise CheckpointError(f"{path} holds no {name}; export it again")
    try:
        graph = core.read_model(path / GRAPH_NAME, path / WEIGHTS_NAME)
    except RuntimeError as error:
        # The places in OpenVINO's own source come first, the finding last.
        reason = str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{path}: {GRAPH_NAME} or {WEIGHTS_NAME} is cut off or damaged ({reason}); export it again"
        ) from error
    found = graph.get_rt_info(_IDENTITY_KEY).astype(str) if graph.has_rt_info(_IDENTITY_KEY) else "elsewhere"
    if found != _identity(metadata):
        raise CheckpointError(f"{path}: {METADATA_NAME} is of another model than {GRAPH_NAME}; export it again")
    return graph


def _sixteen_bits(core: Any, exported: Precision) -> tuple[str, Precision]:
    """OpenVINO's name of the 16-bit arithmetic of this processor, and what the artefact then computes in."""
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for capability, arithmetic, precision in _SIXTEEN_BITS:
        if capability in capabilities:
            return arithmetic, "int8" if exported == "int8" else precision
    logger.warning("half: this CPU has no 16-bit arithmetic; computing in fp32")
    return "f32", exported


def _runner(compiled: Any, metadata: ExportMetadata) -> RunGraph:
    """From tensors to tensors by way of numpy."""
    heads = [compiled.output(name) for name in head_names(metadata)]
    request = compiled.create_infer_request()

    def run(images: Tensor) -> list[Tensor]:
        found = request.infer({INPUT_NAME: images.float().contiguous().numpy()})
        return [torch.from_numpy(found[head]) for head in heads]

    return run
