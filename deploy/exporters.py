"""Which exporter writes which format."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.export_config import ExportConfig, FormatName
from deploy.metadata import ExportMetadata, ExportSettings
from deploy.ncnn.export import export_ncnn
from deploy.ncnn.int8 import Int8Settings
from deploy.ncnn.int8_search import search_int8_skips
from deploy.ncnn.runtime import FORMAT as NCNN_ENDING
from deploy.onnx.detector import FORMAT as ONNX_ENDING
from deploy.onnx.detector import export_onnx
from deploy.onnx.graph import check_opset
from deploy.openvino import FORMAT as OPENVINO_ENDING
from deploy.openvino import export_openvino
from deploy.packages import optional_package
from deploy.registry import load_runtime
from deploy.runtime import Precision
from deploy.tensorrt.engine_file import FORMAT as TENSORRT_ENDING
from deploy.tensorrt.export import export_tensorrt
from deploy.torchscript import FORMAT as TORCHSCRIPT_ENDING
from deploy.torchscript import export_torchscript
from deploy.verification.verify import MeasureAP
from models.detector import Detector
from utils.errors import ConfigError
from utils.files import check_writable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What is exported, and how.

    Attributes:
        model: The network.
        names: Class names by id.
        source_sha256: Of the weights file.
        settings: What every format needs.
        calibration: Letterboxed real pictures (1, 3, H, W) for int8; else none.
        config: What only one format needs.
        measure_ap: mAP50-95 on val, where data is given.
    """

    model: Detector
    names: tuple[str, ...]
    source_sha256: str
    settings: ExportSettings
    calibration: Sequence[Tensor]
    config: ExportConfig
    measure_ap: MeasureAP | None = None


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """One format.

    Attributes:
        ending: Of the name of its file or folder.
        precisions: That it can be written in.
        write: Writes the artefact.
        packages: That writing and running it need; TensorRT looks for its own.
    """

    ending: str
    precisions: tuple[Precision, ...]
    write: Callable[[ExportJob, Path], ExportMetadata]
    packages: tuple[str, ...] = ()


def _write_onnx(job: ExportJob, path: Path) -> ExportMetadata:
    return export_onnx(job.model, path, **_shared(job), calibration=job.calibration, int8_skip=job.config.int8_skip)


def _write_openvino(job: ExportJob, path: Path) -> ExportMetadata:
    return export_openvino(
        job.model, path, **_shared(job), calibration=job.calibration, int8_skip=job.config.int8_skip
    )


def _write_tensorrt(job: ExportJob, path: Path) -> ExportMetadata:
    return export_tensorrt(
        job.model,
        path,
        **_shared(job),
        calibration=job.calibration,
        int8_skip=job.config.int8_skip,
        compute_capability=job.config.compute_capability,
    )


def _write_torchscript(job: ExportJob, path: Path) -> ExportMetadata:
    return export_torchscript(job.model, path, **_shared(job))


def _write_ncnn(job: ExportJob, path: Path) -> ExportMetadata:
    config = job.config
    int8 = Int8Settings(method=config.calib_method, skip=config.int8_skip)
    if config.int8_search:
        int8 = _searched(job, int8)
    return export_ncnn(job.model, path, **_shared(job), calibration=job.calibration, int8=int8)


def _searched(job: ExportJob, int8: Int8Settings) -> Int8Settings:
    """With the layers that int8 costs most mAP left in floating point."""
    measure_ap = job.measure_ap
    assert measure_ap is not None, "searching needs data, which the settings have checked"

    def map_of(folder: Path) -> float:
        runtime = load_runtime(folder, device=torch.device("cpu"))
        return measure_ap(runtime, runtime.input_hw)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, f"network{NCNN_ENDING}")
        plain = {**_shared(job), "settings": replace(job.settings, precision="fp32")}
        export_ncnn(job.model, folder, **plain)
        found = search_int8_skips(folder, images=job.calibration, map_of=map_of, int8=int8)
    logger.info("left in 16 bits: %s", ", ".join(found.settings.skip) or "only the head")
    return found.settings


def _shared(job: ExportJob) -> dict[str, Any]:
    """What every export function takes."""
    return {"names": job.names, "source_sha256": job.source_sha256, "settings": job.settings}


EXPORTERS: Mapping[FormatName, Exporter] = {
    "ncnn": Exporter(
        ending=NCNN_ENDING,
        precisions=("fp32", "fp16", "int8"),
        write=_write_ncnn,
        packages=("pnnx", "ncnn"),
    ),
    "onnx": Exporter(
        ending=ONNX_ENDING,
        precisions=("fp32", "fp16", "int8"),
        write=_write_onnx,
        packages=("onnx", "onnxruntime"),
    ),
    "openvino": Exporter(
        ending=OPENVINO_ENDING,
        precisions=("fp32", "fp16", "int8"),
        write=_write_openvino,
        packages=("openvino", "onnx"),
    ),
    "tensorrt": Exporter(
        ending=TENSORRT_ENDING,
        precisions=("fp32", "fp16", "int8"),
        write=_write_tensorrt,
        packages=("onnx",),
    ),
    "torchscript": Exporter(ending=TORCHSCRIPT_ENDING, precisions=("fp32",), write=_write_torchscript),
}


def artefact_path(config: ExportConfig, name: FormatName) -> Path:
    """Where the artefact of a format goes: best.onnx, best_int8_ncnn_model, ..."""
    suffix = "" if config.precision == "fp32" else f"_{config.precision}"
    return config.folder / f"{Path(config.weights).stem}{suffix}{EXPORTERS[name].ending}"


def nms_path(config: ExportConfig) -> Path:
    """Where the ONNX file goes that gives boxes."""
    return config.folder / f"{Path(config.weights).stem}_nms{ONNX_ENDING}"


def check_formats(config: ExportConfig) -> None:
    """Refuse what cannot be had, before anything is written.

    Raises:
        ConfigError: Names the format that is not to be had in the precision, the package that is not installed, the
            opset that lacks what is needed, the folder that cannot be written to, or the artefact that --verify-only
            does not find.
    """
    for name in config.include:
        exporter = EXPORTERS[name]
        if config.precision not in exporter.precisions:
            known = ", ".join(exporter.precisions)
            raise ConfigError(f"{name} in {config.precision} is not supported; it can be had in {known}")
        for package in exporter.packages:
            optional_package(package, purpose=f"--include {name}")
        if "onnx" in exporter.packages:
            check_opset(config.opset, is_int8=config.int8)
    paths = [*(artefact_path(config, name) for name in config.include), *([nms_path(config)] if config.nms else [])]
    missing = [path for path in paths if not path.exists()]
    if not config.verify_only:
        check_writable(config.folder)
    elif missing:
        raise ConfigError(f"{missing[0]} does not exist; leave --verify-only out to write it")
