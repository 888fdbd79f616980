"""Network, images and metric that export.py reads before it writes, for detectors and classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from commands.detector_flags import warn_of_detector_flags
from commands.export_config import ExportConfig
from deploy.calibration import (
    as_input,
    calibration_images,
    calibration_pictures,
    check_image_size,
    normalised,
    spread,
    spread_pictures,
)
from deploy.job import ExportJob
from deploy.outputs.classifier import ClassifierSource
from deploy.outputs.detector import DetectorSource
from deploy.outputs.sources import open_source
from deploy.verification.verify import MeasureMetric, Reference
from engine.evaluation.classification import check_same_task
from engine.evaluation.classification_scores import picture_batches, score
from engine.evaluation.evaluator import Measure
from engine.evaluation.predict import predictor
from models.classifiers import ClassifierSpec
from models.classifiers.load import is_classifier
from utils.datasets.classes.known import load_pictures
from utils.datasets.classes.pictures import PictureSet
from utils.datasets.indexing.config import load_data_config
from utils.datasets.indexing.index import build_label_index

# Settings that change nothing for a classifier.
_FOR_DETECTORS = ("img_size", "dynamic", "nms", "conf_thres", "iou_thres", "max_det", "workers")
# Images per step when mAP is measured.
_VAL_BATCH = 32
# Real images to compare detectors on where no data set is given.
_BUNDLED = "data/bccd.yaml"


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A network to export, and images (B, C, H, W) in the form of network input to compare its artefacts on."""

    job: ExportJob
    images: Tensor

    def reference(self, config: ExportConfig) -> Reference:
        """Return the network that artefacts are compared with."""
        if config.threads:
            torch.set_num_threads(config.threads)
        return Reference(
            path=Path(config.weights),
            source=self.job.source,
            images=self.images,
            threads=torch.get_num_threads(),
            measure=self.job.measure,
        )


def for_its_task(config: ExportConfig) -> ExportConfig:
    """Return the settings without those that mean nothing for the network, with a warning that names them."""
    if not is_classifier(config.weights):
        return config
    defaults: dict[str, Any] = {item.name: item.default for item in fields(config)}
    warn_of_detector_flags(config, own=defaults.keys() - set(_FOR_DETECTORS))
    return replace(config, **{name: defaults[name] for name in _FOR_DETECTORS})


def prepare(config: ExportConfig) -> Prepared:
    """Read the weights and the images; nothing is written before all of it is there.

    Raises:
        CheckpointError, ConfigError, DataError: Weights or data cannot be read, or do not fit each other.
    """
    source = open_source(config.weights)
    if isinstance(source, ClassifierSource):
        return _classifier(source, config)
    return _detector(source, config)


def _detector(source: DetectorSource, config: ExportConfig) -> Prepared:
    check_image_size(config.image_hw, stride=source.model.max_stride)
    data = load_data_config(config.data or _BUNDLED)
    if config.data:
        data.in_order_of(source.names, weights=config.weights)
    calibration = []
    if config.int8 and not config.verify_only:
        calibration = calibration_images(config.data, count=config.calib_images, image_hw=config.image_hw)
    job = ExportJob(
        source=source,
        settings=config.settings,
        calibration=calibration,
        special=config.special,
        measure=_map(config, source.names) if config.data else None,
    )
    paths = build_label_index(data, "val", workers=config.workers).paths
    chosen = spread(paths, min(config.verify_images, len(paths)))
    return Prepared(job=job, images=torch.cat([as_input(path, config.image_hw) for path in chosen]))


def _classifier(source: ClassifierSource, config: ExportConfig) -> Prepared:
    job = ExportJob(source=source, settings=config.settings, special=config.special)
    if not config.data:
        return Prepared(job=job, images=source.noise(config.verify_images, source.image_chw))
    data, spec = load_pictures(config.data), source.spec
    check_same_task(spec, data, names=source.names, weights=config.weights, name=config.data)
    calibration: Sequence[Tensor] = ()
    if config.int8 and not config.verify_only:
        batches = calibration_pictures(data, spec, count=config.calib_images, name=config.data)
        calibration = torch.split(torch.cat(batches), 1)
    images = torch.cat(normalised(spread_pictures(data.test, config.verify_images), spec))
    job = replace(job, calibration=calibration, measure=_accuracy(data.test, spec))
    return Prepared(job=job, images=images)


def _map(config: ExportConfig, names: Sequence[str]) -> MeasureMetric:
    """Return a function that measures mAP50-95 on the val split; that of the network is measured once."""
    measure = Measure.on_split(
        config.data,
        "val",
        names=names,
        img_size=max(config.image_hw),
        batch_size=_VAL_BATCH,
        device=torch.device("cpu"),
        workers=config.workers,
    )

    def ap(runtime: Any, frame_hw: tuple[int, int] | None) -> float:
        evaluation = measure.evaluate(predictor(runtime), stride=max(runtime.strides), frame_hw=frame_hw)
        return evaluation.metrics.AP

    return cast("MeasureMetric", cache(ap))


def _accuracy(test: PictureSet, spec: ClassifierSpec) -> MeasureMetric:
    """Return a function that measures accuracy on the test images; that of the network is measured once."""

    def accuracy(runtime: Any, _: tuple[int, int] | None) -> float:
        return score(runtime, picture_batches(test, spec)).accuracy

    return cast("MeasureMetric", cache(accuracy))
