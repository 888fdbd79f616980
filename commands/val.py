"""Measure a detector: COCO numbers, curves, confusion matrix, sample images, speed. Or a classifier: accuracy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from commands.val_classifier import run_classification
from commands.val_config import ValConfig
from deploy.artefact.frame import DEFAULT_IMG_SIZE, FixedFrame
from deploy.artefact.runtime import DetectorRuntime
from deploy.formats import load_detector
from deploy.settings import RuntimeOptions
from engine.evaluation.classification import ClassifierEvaluation
from engine.evaluation.evaluate import EvalSettings, Evaluation, OnBatch
from engine.evaluation.predict import augmented, ensemble, predictor
from engine.evaluation.report import (
    LabelFiles,
    SamplePictures,
    metrics_table,
    result_of,
    save_evaluation,
    speed_line,
)
from engine.evaluation.session import EvalSession
from engine.evaluation.study import run_study
from utils.datasets.classes.known import are_pictures
from utils.datasets.indexing.config import DataConfig, load_data_config
from utils.datasets.indexing.index import LabelIndex, build_label_index
from utils.datasets.indexing.usable import warn_without_boxes
from utils.datasets.loading.batch import Batch
from utils.detections.output_names import OutputNames
from utils.device import select_device
from utils.errors import ConfigError
from utils.storage.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)


def val(config: ValConfig) -> Evaluation | ClassifierEvaluation | None:
    """Measure, write the run folder and log the table; a study gives its numbers only as files."""
    if are_pictures(config.data):
        return run_classification(config)
    session = _open_session(config)
    folder = RunFolder.begin(config)
    logger.info("results in %s", folder.path)
    if config.task == "study":
        points = run_study(session.evaluate_at, config.study_sizes, folder.path)
        folder.write_result({"study": [plain(point) for point in points], "config": plain(config)})
        logger.info("results in %s", folder.path / "study.csv")
        return None
    names = session.index.names
    evaluation = session.evaluate_at(
        config.img_size or DEFAULT_IMG_SIZE, on_batch=_saver(config, folder.path, session.index)
    )
    save_evaluation(evaluation, folder.path, names=names)
    folder.write_result({**result_of(evaluation), "config": plain(config)})
    logger.info("%s", metrics_table(evaluation, names=names, verbose=config.verbose))
    logger.info("%s\nresults in %s", speed_line(evaluation), folder.path)
    return evaluation


def _open_session(config: ValConfig) -> EvalSession:
    """Read the weights, the data set and its labels."""
    is_speed = config.task == "speed"
    settings = EvalSettings(
        conf=0.25 if is_speed else config.conf_thres,
        iou=0.45 if is_speed else config.iou_thres,
        max_det=config.max_det,
        single_cls=config.single_cls,
        engine=config.engine,
        hybrid_labels=config.save_hybrid,
    )
    data = load_data_config(config.data)
    device = select_device(config.device)
    options = RuntimeOptions(half=config.half, threads=config.threads, powersave=config.powersave)
    runtimes = [load_detector(path, device=device, options=options) for path in config.weights]
    if not config.single_cls:
        data = _in_order_of(runtimes, data, config)
    frame_hw = _frame_of(runtimes, config)
    stride = max(max(runtime.strides) for runtime in runtimes)
    predict = ensemble([predictor(runtime) for runtime in runtimes])
    split = config.task if config.task in ("train", "val", "test") else "val"
    index = build_label_index(
        data, split, cache_dir=config.cache_dir or None, workers=config.workers, single_cls=config.single_cls
    )
    warn_without_boxes(
        index, where=f"{data.path}: {split}", then="predictions.json and the drawn images are written all the same"
    )
    return EvalSession(
        predict=augmented(predict, stride) if config.augment else predict,
        index=index,
        settings=settings,
        device=device,
        stride=stride,
        batch_size=config.batch_size,
        workers=config.workers,
        rect=config.rect,
        frame_hw=frame_hw,
    )


def _in_order_of(runtimes: Sequence[DetectorRuntime], data: DataConfig, config: ValConfig) -> DataConfig:
    """Return the data set with its classes in the order that all the networks have.

    Raises:
        ConfigError: A network knows other classes, or two list them in different orders.
    """
    orders = {
        data.in_order_of(runtime.names, weights=path) for path, runtime in zip(config.weights, runtimes, strict=True)
    }
    if len(orders) > 1:
        raise ConfigError("--weights: the networks list their classes in different orders; measure them one by one")
    return orders.pop()


def _frame_of(runtimes: Sequence[DetectorRuntime], config: ValConfig) -> tuple[int, int] | None:
    """Return the one height and width of images that fixed artefacts take.

    Raises:
        ConfigError: They take different ones, or not the size that was asked for.
    """
    frame = FixedFrame.of(runtimes, config.weights)
    if frame is None:
        return None
    if config.task == "study":
        for size in config.study_sizes:
            frame.check(size, setting="--study-sizes")
    elif config.img_size is not None:
        frame.check(config.img_size)
    if config.rect:
        logger.info("%s takes images of height and width %s only: measured at that size", frame.name, frame.hw)
    return frame.hw


def _saver(config: ValConfig, folder: Path, index: LabelIndex) -> OnBatch:
    """Return what happens to each batch: sample images are drawn, and txt files written if asked."""
    savers: list[OnBatch] = [SamplePictures(folder=folder, names=index.names)]
    if config.save_txt or config.save_hybrid:
        names = OutputNames(index.inputs)
        savers.append(LabelFiles(folder=folder, names=names, with_score=config.save_conf))

    def save(step: int, batch: Batch, boxes: Sequence[NDArray[Any]]) -> None:
        for saver in savers:
            saver(step, batch, boxes)

    return save
