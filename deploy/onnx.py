"""ONNX: written by torch's TorchScript-based exporter, run by onnxruntime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.artefact import ArtefactRuntime, RunGraph
from deploy.metadata import METADATA_NAME, ExportMetadata, ExportSettings
from deploy.onnx_padding import join_zeros_
from deploy.packages import optional_package
from deploy.prepare import HalfNetwork, ready_for_export
from deploy.runtime import RuntimeOptions
from models.detector import Detector
from utils.errors import CheckpointError, ConfigError
from utils.files import atomic_write

logger = logging.getLogger(__name__)

FORMAT = ".onnx"
INPUT_NAME = "images"
# Attention needs 14; 20 is the last that this exporter knows.
OPSETS = range(14, 21)


def export_onnx(
    model: Detector, path: str | Path, *, names: Sequence[str], source_sha256: str, settings: ExportSettings
) -> ExportMetadata:
    """Write a network as ONNX: input `images`, outputs `head0`, `head1`, ..., all float32; metadata inside.

    Raises:
        ConfigError: A precision, opset or image size that cannot be had, a missing package, an unwritable folder.
    """
    if settings.precision not in ("fp32", "fp16"):
        raise ConfigError(f"ONNX in {settings.precision} is not supported; expected fp32 or fp16")
    if settings.opset not in OPSETS:
        raise ConfigError(f"--opset {settings.opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    onnx = optional_package("onnx", purpose="export to ONNX")
    metadata = ExportMetadata.of(
        model,
        format=FORMAT,
        names=names,
        source_sha256=source_sha256,
        settings=settings,
        versions={"onnx": onnx.__version__},
    )
    network = ready_for_export(model)
    join_zeros_(network)
    if settings.precision == "fp16":
        network = HalfNetwork(network)
    with atomic_write(path) as temporary:
        _write_graph(network, temporary, metadata=metadata, opset=settings.opset)
        graph = onnx.load_from_string(temporary.read_bytes())
        onnx.helper.set_model_props(graph, {METADATA_NAME: metadata.to_json()})
        onnx.checker.check_model(graph)
        temporary.write_bytes(graph.SerializeToString())
    return metadata


def _write_graph(network: nn.Module, path: Path, *, metadata: ExportMetadata, opset: int) -> None:
    """The file as torch writes it, without metadata."""
    outputs = [f"head{level}" for level in range(len(metadata.strides))]
    dynamic = {name: {0: "batch", 2: f"{name}_height", 3: f"{name}_width"} for name in [INPUT_NAME, *outputs]}
    with warnings.catch_warnings():
        # The successor of this exporter needs one more package and ignores opsets below 18.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(metadata.batch_size, 3, *metadata.image_hw),),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=outputs,
            dynamic_axes=dynamic if metadata.dynamic else None,
        )


def load_onnx(path: Path, *, device: torch.device, options: RuntimeOptions) -> ArtefactRuntime:
    """Load a file that `export_onnx` wrote.

    Raises:
        CheckpointError: The file is damaged, or holds no metadata.
        ConfigError: onnxruntime is not installed.
    """
    onnxruntime = optional_package("onnxruntime", purpose=str(path))
    session = _session(onnxruntime, path, device=device, threads=options.num_threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_NAME, "")
    metadata = ExportMetadata.from_json(text, where=path)
    if options.half and metadata.precision == "fp32":
        logger.warning("half: %s computes in fp32, as it was exported", path)
    return ArtefactRuntime(_runner(session), metadata, path=path, device=device)


def _session(onnxruntime: Any, path: Path, *, device: torch.device, threads: int) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors; they come back as exceptions
    providers = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        else:
            logger.warning("%s: this onnxruntime has no CUDA; computing on the CPU", path)
    failures = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return onnxruntime.InferenceSession(str(path), settings, providers=providers)
    except (failures.Fail, failures.InvalidProtobuf, failures.InvalidGraph, failures.InvalidArgument) as error:
        raise CheckpointError(f"{path} is no ONNX file, or cut off; export it again") from error


def _runner(session: Any) -> RunGraph:
    """From tensors to tensors by way of numpy."""

    def run(images: Tensor) -> list[Tensor]:
        arrays = session.run(None, {INPUT_NAME: images.float().cpu().contiguous().numpy()})
        return [torch.from_numpy(array) for array in arrays]

    return run
