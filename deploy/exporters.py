"""Functions of the table of formats that write a detector: one per format, all with the same arguments."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploy.artefact.metadata import ExportMetadata
from deploy.formats import load_runtime
from deploy.ncnn.export import export_ncnn
from deploy.ncnn.int8 import Int8Settings
from deploy.ncnn.int8_search import search_int8_skips
from deploy.ncnn.runtime import FORMAT as NCNN_ENDING
from deploy.onnx.detector import export_onnx
from deploy.openvino import export_openvino
from deploy.settings import ExportSettings, FormatSettings
from deploy.tensorrt.export import export_tensorrt
from deploy.torchscript import export_torchscript
from deploy.verification.verify import MeasureAP
from models.detector import Detector

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """A detector to export, with its settings.

    Attributes:
        model: Detector.
        names: Class names by id.
        source_sha256: SHA-256 of the weights file.
        settings: Settings that every format needs.
        calibration: Letterboxed real images (1, 3, H, W) for int8; empty otherwise.
        special: Settings that only some formats use.
        measure_ap: Function that measures mAP50-95 on val; None without data.
    """

    model: Detector
    names: tuple[str, ...]
    source_sha256: str
    settings: ExportSettings
    calibration: Sequence[Tensor]
    special: FormatSettings = FormatSettings()  # noqa: RUF009 - immutable
    measure_ap: MeasureAP | None = None


def write_onnx(job: ExportJob, path: Path) -> ExportMetadata:
    """Write a detector for ONNX Runtime."""
    return export_onnx(job.model, path, **_shared(job), calibration=job.calibration, int8_skip=job.special.int8_skip)


def write_openvino(job: ExportJob, path: Path) -> ExportMetadata:
    """Write a detector for OpenVINO."""
    return export_openvino(
        job.model, path, **_shared(job), calibration=job.calibration, int8_skip=job.special.int8_skip
    )


def write_tensorrt(job: ExportJob, path: Path) -> ExportMetadata:
    """Write a detector for TensorRT."""
    return export_tensorrt(
        job.model,
        path,
        **_shared(job),
        calibration=job.calibration,
        int8_skip=job.special.int8_skip,
        compute_capability=job.special.compute_capability,
    )


def write_torchscript(job: ExportJob, path: Path) -> ExportMetadata:
    """Write a detector for TorchScript."""
    return export_torchscript(job.model, path, **_shared(job))


def write_ncnn(job: ExportJob, path: Path) -> ExportMetadata:
    """Write a detector for ncnn."""
    special = job.special
    int8 = Int8Settings(method=special.calib_method, skip=special.int8_skip)
    if special.int8_search:
        int8 = _searched(job, int8)
    return export_ncnn(job.model, path, **_shared(job), calibration=job.calibration, int8=int8)


def _searched(job: ExportJob, int8: Int8Settings) -> Int8Settings:
    """Add the layers in which int8 costs most mAP to those kept in floating point."""
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
    logger.info("kept in 16 bits: %s", ", ".join(found.settings.skip) or "only the head")
    return found.settings


def _shared(job: ExportJob) -> dict[str, Any]:
    """Return the arguments that every export function takes."""
    return {"names": job.names, "source_sha256": job.source_sha256, "settings": job.settings}
