"""export.py for classifiers: write each format, compare it with the network, measure what it gets right."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from commands.detector_flags import warn_of_detector_flags
from commands.export_config import ExportConfig
from commands.export_files import artefact_path, check_formats, ignored_settings
from deploy.classifier.export import Logits, check_format, export_classifier
from deploy.classifier.metadata import ClassifierSettings
from deploy.classifier.pictures import calibration_pictures, normalised, spread_pictures
from deploy.classifier.verify import ClassifierReference, ClassifierReport, report_table, verify_classifier
from deploy.formats import load_classifier as load_exported_classifier
from engine.evaluation.classification import check_same_task
from models.classifiers import ClassifierSpec, LoadedClassifier, load_classifier
from utils.config.values import warn_of_ignored
from utils.datasets.classes.known import load_pictures
from utils.datasets.classes.pictures import PictureData
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)

# Settings of export.py that mean something here.
_OWN = (
    *("weights", "include", "half", "int8", "data", "calib_images", "opset", "verify_only", "verify_images"),
    *("threads", "output", "project", "name", "exist_ok"),
)


def run_classifier_export(config: ExportConfig) -> bool:
    """Export, verify, write the run folder.

    Returns:
        Whether every artefact is within its tolerance.

    Raises:
        ConfigError, CheckpointError, DataError: Something cannot be had; what is not whole has been removed.
    """
    warn_of_detector_flags(config, own=_OWN)
    ignored = ignored_settings(config)
    warn_of_ignored(config, {reason: set(names).intersection(_OWN) for reason, names in ignored.items()})
    job = _job(config)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    reports = [_exported(path, job, config) for path in job.paths]
    passed = all(report.passed for report in reports)
    data = [{**plain(report), "passed": report.passed} for report in reports]
    folder.write_result({"passed": passed, "reports": data, "config": plain(config)})
    logger.info("%s", report_table(reports))
    logger.info("files in %s, report in %s", config.folder, folder.path / "result.json")
    return passed


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A network to export, the files to write, and the reference they are compared with."""

    network: nn.Module
    paths: tuple[Path, ...]
    settings: ClassifierSettings
    reference: ClassifierReference
    calibration: Sequence[Tensor]


def _job(config: ExportConfig) -> _Job:
    """Read the weights and the images; nothing is written before all of it is there."""
    paths = tuple(artefact_path(config, name) for name in config.include)
    for path in paths:
        check_format(path, config.precision)
    check_formats(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    loaded = load_classifier(config.weights)
    data = load_pictures(config.data) if config.data else None
    if data is not None:
        check_same_task(loaded.spec, data, names=loaded.names, weights=config.weights, name=config.data)
    return _Job(
        network=loaded.model,
        paths=paths,
        settings=_settings(loaded, config),
        reference=_reference(loaded, data, config),
        calibration=_calibration(loaded.spec, data, config),
    )


def _settings(loaded: LoadedClassifier, config: ExportConfig) -> ClassifierSettings:
    channels, height, width = loaded.spec.image_chw
    return ClassifierSettings(
        image_chw=(channels, height, width),
        names=loaded.names,
        mean=loaded.spec.mean,
        std=loaded.spec.std,
        precision=config.precision,
        opset=config.opset,
    )


def _calibration(spec: ClassifierSpec, data: PictureData | None, config: ExportConfig) -> list[Tensor]:
    """Images (1, C, H, W) for int8; else none."""
    if data is None or not config.int8 or config.verify_only:
        return []
    batches = calibration_pictures(data, spec, count=config.calib_images, name=config.data)
    return [picture[None] for batch in batches for picture in batch]


def _reference(loaded: LoadedClassifier, data: PictureData | None, config: ExportConfig) -> ClassifierReference:
    """Return the network, and test images to compare on, or noise where no data is given."""
    spec, test = loaded.spec, data.test if data else None
    if test is None:
        shape = config.verify_images, *spec.image_chw
        images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    else:
        images = torch.cat(normalised(spread_pictures(test, config.verify_images), spec))
    return ClassifierReference(
        path=Path(config.weights),
        network=Logits(loaded.model),
        spec=spec,
        images=images,
        test=test,
        threads=torch.get_num_threads(),
    )


def _exported(path: Path, job: _Job, config: ExportConfig) -> ClassifierReport:
    """Write one artefact, unless --verify-only, and compare it."""
    if not config.verify_only:
        start = time.perf_counter()
        export_classifier(
            job.network,
            path,
            settings=job.settings,
            images=job.reference.images,
            calibration=job.calibration,
        )
        logger.info("%s: written in %.1f s", path, time.perf_counter() - start)
    return verify_classifier(load_exported_classifier(path, threads=config.threads), job.reference, path=path)
