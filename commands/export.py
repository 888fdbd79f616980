"""export.py: write each format, compare it with the network, say what is fit to ship."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from commands.export_classifier import run_classifier_export
from commands.export_config import ExportConfig
from commands.export_files import artefact_path, check_formats, ignored_settings, nms_path
from deploy.artefact.runtime import RuntimeModel
from deploy.calibration import as_input, calibration_images, check_image_size, spread
from deploy.exporters import ExportJob
from deploy.formats import FORMATS, load_runtime, resolve
from deploy.onnx.nms import NmsReport, NmsSettings, check_nms, export_onnx_with_nms
from deploy.pytorch import PyTorchRuntime
from deploy.settings import RuntimeOptions
from deploy.tensorrt.engine_file import FORMAT as TENSORRT_ENDING
from deploy.verification.report import report_data, verify_table
from deploy.verification.verify import MeasureAP, Reference, VerifyReport, verify
from engine.evaluation.evaluator import Measure
from engine.evaluation.predict import predictor
from models.classifiers.load import is_classifier
from models.load import load_model
from utils.config.values import warn_of_ignored
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index
from utils.storage.files import check_writable, sha256_of
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")
# Images per step when mAP is measured.
_VAL_BATCH = 32
# Real images to compare on where no data set is given.
_BUNDLED = "data/bccd.yaml"


def run_export(config: ExportConfig) -> bool:
    """Export, verify, write the run folder.

    Returns:
        Whether every artefact that can run here is within its tolerance.

    Raises:
        ConfigError, CheckpointError, DataError: Something cannot be had; what is not whole has been removed.
    """
    check_writable(config.project)
    if is_classifier(config.weights):
        return run_classifier_export(config)
    check_formats(config)
    warn_of_ignored(config, ignored_settings(config))
    job = _job(config)
    reference = _reference(job, config)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    reports: list[VerifyReport] = []
    not_run: list[str] = []
    for path in _written(job, config):
        device = _device_of(path)
        if device is None:
            logger.warning("%s: built, but not run and so not verified: this machine has no GPU", path)
            not_run.append(str(path))
            continue
        artefact = load_runtime(path, device=device, options=RuntimeOptions(threads=config.threads))
        _check_source(artefact, job, path)
        reports.append(verify(artefact, reference, path=path, batch_size=config.batch_size))
    with_nms = _with_nms(job, config, reference) if config.nms else None
    passed = all(report.passed for report in reports) and (with_nms is None or with_nms.passed)
    data = [report_data(report) for report in reports]
    result = {"passed": passed, "reports": data, "not_run": not_run, "nms": plain(with_nms)}
    folder.write_result({**result, "config": plain(config)})
    if reports:
        logger.info("%s", verify_table(reports))
    if with_nms:
        logger.info("%s", with_nms.as_text())
    logger.info("files in %s, report in %s", config.folder, folder.path / "result.json")
    return passed


def _device_of(path: Path) -> torch.device | None:
    """Where an artefact runs here; None where it cannot."""
    if path.suffix != TENSORRT_ENDING:
        return _CPU
    return torch.device("cuda") if torch.cuda.is_available() else None


def _job(config: ExportConfig) -> ExportJob:
    """Read the weights, and the images that int8 needs."""
    loaded = load_model(config.weights)
    check_image_size(config.image_hw, stride=loaded.model.max_stride)
    if config.data:
        load_data_config(config.data).in_order_of(loaded.names, weights=config.weights)
    is_calibrated = config.int8 and not config.verify_only
    calibration = (
        calibration_images(config.data, count=config.calib_images, image_hw=config.image_hw) if is_calibrated else []
    )
    return ExportJob(
        model=loaded.model,
        names=loaded.names,
        source_sha256=sha256_of(config.weights),
        settings=config.settings,
        calibration=calibration,
        special=config.special,
        measure_ap=_measure_ap(config, loaded.names) if config.data else None,
    )


def _written(job: ExportJob, config: ExportConfig) -> Iterator[Path]:
    """Each artefact, once it is written, or at once with --verify-only."""
    for name in config.include:
        path = artefact_path(config, name)
        if not config.verify_only:
            start = time.perf_counter()
            resolve(FORMATS[name].write)(job, path)
            logger.info("%s: written in %.1f s", path, time.perf_counter() - start)
        yield path


def _with_nms(job: ExportJob, config: ExportConfig, reference: Reference) -> NmsReport:
    """Write the ONNX file that gives boxes, and run it."""
    nms = NmsSettings(conf=config.conf_thres, iou=config.iou_thres, max_det=config.max_det)
    path = nms_path(config)
    if not config.verify_only:
        export_onnx_with_nms(
            job.model,
            path,
            names=job.names,
            source_sha256=job.source_sha256,
            settings=job.settings,
            nms=nms,
        )
        logger.info("%s: written", path)
    return check_nms(path, reference, nms=nms, batch_size=config.batch_size)


def _check_source(artefact: RuntimeModel, job: ExportJob, path: Path) -> None:
    """Refuse an artefact of another network."""
    metadata = getattr(artefact, "metadata", None)
    assert metadata is not None, "exported artefacts carry metadata"
    metadata.check_is_of(job.model, source_sha256=job.source_sha256, where=path)


def _reference(job: ExportJob, config: ExportConfig) -> Reference:
    """Return the network in PyTorch, and images to compare it on."""
    if config.threads:
        torch.set_num_threads(config.threads)
    return Reference(
        path=Path(config.weights),
        runtime=PyTorchRuntime(job.model, names=job.names, device=_CPU),
        images=_pictures(config),
        threads=torch.get_num_threads(),
        measure_ap=job.measure_ap,
    )


def _pictures(config: ExportConfig) -> Tensor:
    """(n, 3, H, W) of the val split, or of the bundled images."""
    paths = build_label_index(load_data_config(config.data or _BUNDLED), "val", workers=config.workers).paths
    chosen = spread(paths, min(config.verify_images, len(paths)))
    return torch.cat([as_input(path, config.image_hw) for path in chosen])


def _measure_ap(config: ExportConfig, names: Sequence[str]) -> MeasureAP:
    """mAP50-95 on the val split; that of the network is measured once for all formats."""
    measure = Measure.on_split(
        config.data,
        "val",
        names=names,
        img_size=max(config.image_hw),
        batch_size=_VAL_BATCH,
        device=_CPU,
        workers=config.workers,
    )

    known: dict[tuple[RuntimeModel, tuple[int, int] | None], float] = {}

    def ap(runtime: RuntimeModel, frame_hw: tuple[int, int] | None) -> float:
        key = runtime, frame_hw
        if key not in known:
            evaluation = measure.evaluate(predictor(runtime), stride=max(runtime.strides), frame_hw=frame_hw)
            known[key] = evaluation.metrics.AP
        return known[key]

    return ap
