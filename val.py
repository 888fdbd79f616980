"""Measure a detector: COCO numbers, curves, confusion matrix, sample pictures, speed. Or a classifier: accuracy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from numpy.typing import NDArray

from deploy.classification_run import run_classification
from deploy.frame import DEFAULT_IMG_SIZE, FixedFrame
from deploy.registry import load_runtime
from deploy.runtime import RuntimeModel, RuntimeOptions
from engine.classifier_evaluation import ClassifierEvaluation
from engine.config import spelled
from engine.eval_report import (
    LabelFiles,
    SamplePictures,
    metrics_table,
    result_of,
    save_evaluation,
    speed_line,
)
from engine.eval_session import EvalSession
from engine.evaluate import EvalSettings, Evaluation, OnBatch
from engine.predict import augmented, ensemble, predictor
from engine.study import STUDY_SIZES, run_study
from utils.batch import Batch
from utils.cli import run_script
from utils.config_values import check_least
from utils.datasets.config import DataConfig, load_data_config
from utils.datasets.index import LabelIndex, build_label_index
from utils.datasets.known_pictures import are_pictures
from utils.datasets.usable import warn_without_boxes
from utils.device import select_device
from utils.errors import ConfigError
from utils.metrics.coco import Engine
from utils.output_names import OutputNames
from utils.run_folder import RunFolder, plain

logger = logging.getLogger(__name__)

Task = Literal["train", "val", "test", "speed", "study"]


@dataclass(frozen=True, kw_only=True)
class ValConfig:
    """Measure a detector or a classifier on a data set."""

    weights: tuple[str, ...]  # checkpoint or exported artefact; several detectors make an ensemble
    data: str = "data/bccd.yaml"  # data set YAML; for a classifier mnist, cifar10 (fetched once) or an .npz
    batch_size: Annotated[int, spelled("--batch")] = 32  # images per step
    # longer side in pixels; 640 by default, or the one size of an artefact
    img_size: Annotated[int | None, spelled("--img", "--imgsz")] = None
    conf_thres: Annotated[float, spelled("--conf")] = 0.001  # least score of a box
    iou_thres: Annotated[float, spelled("--iou")] = 0.6  # NMS threshold; .65 for published COCO numbers
    max_det: int = 300  # most boxes per image
    task: Task = "val"  # split to measure; or time val at conf .25 and IoU .45; or measure val over image sizes
    study_sizes: tuple[int, ...] = STUDY_SIZES  # image sizes of --task study
    device: str = ""  # cpu, or the number of a GPU; empty takes a GPU if there is one
    half: bool = False  # compute in 16 bits where the device can
    threads: int | None = None  # of the processor; all cores by default
    powersave: int = 0  # cores for ncnn: 0 all, 1 the small ones, 2 the big ones
    single_cls: bool = False  # treat all classes as one
    augment: bool = False  # test-time augmentation: three scales, one of them flipped
    rect: bool = True  # --no-rect pads every image to a square; else only to a multiple of the stride
    verbose: bool = False  # list every class, however many
    save_txt: bool = False  # write labels/<image>.txt
    save_hybrid: bool = False  # write txt of true and predicted boxes merged; the numbers then mean nothing
    save_conf: bool = False  # add the score to each line of the txt
    save_json: bool = False  # for v5.0 command lines; predictions.json is always written
    engine: Engine = "faster"  # package that counts the COCO numbers
    workers: int = 8  # data loading processes, at most one per core
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched pictures
    project: str = "runs/val"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("--weights: none given; name at least one checkpoint")
        check_least(self, batch_size=1, img_size=1, workers=0)


def val(config: ValConfig) -> Evaluation | ClassifierEvaluation | None:
    """Measure, write the run folder and log the table; a study gives its numbers only as files."""
    if are_pictures(config.data):
        return run_classification(config)
    session = _open_session(config)
    folder = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    logger.info("results in %s", folder.path)
    folder.write_config(config)
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
    runtimes = [load_runtime(path, device=device, options=options) for path in config.weights]
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


def _in_order_of(runtimes: Sequence[RuntimeModel], data: DataConfig, config: ValConfig) -> DataConfig:
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


def _frame_of(runtimes: Sequence[RuntimeModel], config: ValConfig) -> tuple[int, int] | None:
    """The one height and width of images that fixed artefacts take.

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
    """What happens to each batch: sample pictures, and txt files if asked."""
    savers: list[OnBatch] = [SamplePictures(folder=folder, names=index.names)]
    if config.save_txt or config.save_hybrid:
        names = OutputNames(index.inputs)
        savers.append(LabelFiles(folder=folder, names=names, with_score=config.save_conf))

    def save(step: int, batch: Batch, boxes: Sequence[NDArray[Any]]) -> None:
        for saver in savers:
            saver(step, batch, boxes)

    return save


if __name__ == "__main__":
    run_script(val, ValConfig)
