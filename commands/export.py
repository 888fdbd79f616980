"""export.py: write each format, compare it with the network, report which files are fit to ship."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from commands.export_config import ExportConfig
from commands.export_job import Prepared, for_its_task, prepare
from deploy.artefact.packages import optional_package
from deploy.formats import FORMATS, check_precision, load_runtime, resolve
from deploy.job import ExportJob
from deploy.latency.side_by_side import SideBySide, time_side_by_side
from deploy.layer_errors import LAYERS_NAME, write_layer_errors
from deploy.onnx.graph import check_opset
from deploy.onnx.nms import NmsReport, NmsSettings, check_nms, write_onnx_with_nms
from deploy.outputs.metadata import check_is_of
from deploy.settings import RuntimeOptions
from deploy.verification.verify import Reference, VerifyReport, report_data, verify, verify_table
from quantization.layer_errors import LayerError
from utils.config.values import warn_of_ignored
from utils.errors import ConfigError
from utils.storage.files import check_writable
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)


def run_export(config: ExportConfig) -> bool:
    """Export a detector or classifier, verify, write the run folder.

    Returns:
        Whether every artefact that can run here is within its tolerance.

    Raises:
        ConfigError, CheckpointError, DataError: Settings, weights or data do not fit; no incomplete file is left.
    """
    check_writable(config.project)
    task, config = for_its_task(config)
    check_export(config)
    warn_of_ignored(config, _ignored_settings(config))
    prepared = prepare(task, config)
    reference = prepared.reference(config)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    reports: list[VerifyReport] = []
    not_run: list[str] = []
    for name in config.include:
        path = _written(name, prepared, config, folder.path)
        if FORMATS[name].needs_gpu and not torch.cuda.is_available():
            logger.warning("%s: built, but not run and so not verified: this machine has no GPU", path)
            not_run.append(str(path))
        else:
            reports.append(_verified(name, path, reference, config))
    with_nms = _with_nms(prepared, config, reference) if config.nms else None
    beside = [_beside(prepared.beside, report, reference, config) for report in reports if prepared.beside]
    passed = all(report.passed for report in reports) and (with_nms is None or with_nms.passed)
    data = [report_data(report) for report in reports]
    result = {"passed": passed, "reports": data, "not_run": not_run, "nms": plain(with_nms)}
    result["beside"] = [timed.to_dict() for timed in beside]
    folder.write_result({**result, "config": plain(config)})
    if reports:
        logger.info("%s", verify_table(reports))
    if with_nms:
        logger.info("%s", with_nms.as_text())
    for timed in beside:
        logger.info("%s", timed.as_text())
    logger.info("files in %s, report in %s", config.folder, folder.path / "result.json")
    return passed


def _written(name: str, prepared: Prepared, config: ExportConfig, folder: Path) -> Path:
    """Write an artefact, unless --verify-only, and return its path; into the run folder goes what int8 costs."""
    path = artefact_path(config, name)

    def tell(errors: Sequence[LayerError]) -> None:
        logger.info("%s", write_layer_errors(errors, folder, name=f"{LAYERS_NAME}_{name}"))

    if not config.verify_only:
        start = time.perf_counter()
        resolve(FORMATS[name].write)(replace(prepared.job, tell=tell), path)
        logger.info("%s: written in %.1f s", path, time.perf_counter() - start)
    return path


def _verified(name: str, path: Path, reference: Reference, config: ExportConfig) -> VerifyReport:
    """Load an artefact, and compare it with the network."""
    device = torch.device("cuda" if FORMATS[name].needs_gpu else "cpu")
    artefact = load_runtime(path, device=device, options=RuntimeOptions(threads=config.threads))
    check_is_of(artefact.metadata, reference.source, where=path)
    return verify(artefact, reference, path=path, batch_size=config.batch_size)


def _beside(other: ExportJob, report: VerifyReport, reference: Reference, config: ExportConfig) -> SideBySide:
    """Time the network of `--beside` in turns with an artefact."""
    images = reference.images[:1].expand(config.batch_size, -1, -1, -1)
    options = RuntimeOptions(threads=config.threads)
    return time_side_by_side(report.path, other, images, weights=Path(config.beside), options=options)


def _with_nms(prepared: Prepared, config: ExportConfig, reference: Reference) -> NmsReport:
    """Write the ONNX file that gives boxes, and run it."""
    nms = NmsSettings(conf=config.conf_thres, iou=config.iou_thres, max_det=config.max_det)
    path = _nms_path(config)
    if not config.verify_only:
        write_onnx_with_nms(prepared.job, path, nms=nms)
        logger.info("%s: written", path)
    return check_nms(path, reference, nms=nms, batch_size=config.batch_size)


def artefact_path(config: ExportConfig, name: str) -> Path:
    """Return the path of the artefact of a format: best.onnx, best_int8_ncnn_model, ..."""
    suffix = "" if config.precision == "fp32" else f"_{config.precision}"
    return config.folder / f"{Path(config.weights).stem}{suffix}{FORMATS[name].suffix}"


def _nms_path(config: ExportConfig) -> Path:
    """Return the path of the ONNX file that returns boxes."""
    return config.folder / f"{Path(config.weights).stem}_nms{FORMATS['onnx'].suffix}"


def check_export(config: ExportConfig) -> None:
    """Refuse unsupported settings before anything is written.

    Raises:
        ConfigError: A format is not written in the precision, a package is not installed, the opset lacks what int8
            needs, the folder is not writable, or --verify-only does not find an artefact.
    """
    for name in config.include:
        check_precision(name, config.precision)
        for package in FORMATS[name].packages:
            optional_package(package, purpose=f"--include {name}")
        if _is_by_onnx(name):
            check_opset(config.opset, is_int8=config.int8)
    paths = [*(artefact_path(config, name) for name in config.include), *([_nms_path(config)] if config.nms else [])]
    missing = [path for path in paths if not path.exists()]
    if not config.verify_only:
        check_writable(config.folder)
    elif missing:
        raise ConfigError(f"{missing[0]} does not exist; leave --verify-only out to write it")


def _ignored_settings(config: ExportConfig) -> dict[str, tuple[str, ...]]:
    """Return the names of the settings that change nothing beside the others, by reason."""
    formats = " ".join(config.include)
    return {
        f"--include {formats}": () if any(map(_is_by_onnx, config.include)) else ("opset",),
        "without --include tensorrt": () if "tensorrt" in config.include else ("compute_capability",),
        "without --int8": () if config.int8 else ("calib_images", "calib_method"),
        "without --nms": () if config.nms else ("conf_thres", "iou_thres", "max_det"),
    }


def _is_by_onnx(name: str) -> bool:
    """Return whether files of the format are made from an ONNX graph."""
    return "onnx" in FORMATS[name].packages
