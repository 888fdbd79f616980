"""Detect objects in images, folders, videos, cameras and streams."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro

from deploy.detection_run import DetectResult, run_detection
from deploy.predictor import load
from utils.cli import run_script
from utils.detection_files import WriteOptions
from utils.detections import Detections
from utils.run_folder import RunFolder, plain
from utils.sources import open_source
from utils.window import check_window_system

logger = logging.getLogger(__name__)
_flag = tyro.conf.arg


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """Detect objects in images, folders, videos, cameras and streams."""

    weights: Annotated[tuple[str, ...], _flag(help="Checkpoint or artefact; several make an ensemble.")]
    source: Annotated[
        str, _flag(help="Image, folder, quoted glob, txt list, video, camera number, RTSP/HTTP address.")
    ] = "data/bccd/images/test"
    img_size: Annotated[
        int | None,
        _flag(aliases=["--img", "--imgsz"], help="Longer side in pixels; 640, or the one size of an artefact."),
    ] = None
    conf_thres: Annotated[float, _flag(aliases=["--conf"], help="Least score.")] = 0.25
    iou_thres: Annotated[float, _flag(aliases=["--iou"], help="NMS overlap.")] = 0.45
    max_det: Annotated[int, _flag(help="Most boxes per image.")] = 300
    device: Annotated[str, _flag(help="cpu, or a GPU number; a GPU if there is one by default.")] = ""
    view_img: Annotated[bool, _flag(help="Show the pictures; q ends.")] = False
    save_txt: Annotated[bool, _flag(help="Write labels/*.txt.")] = False
    save_conf: Annotated[bool, _flag(help="Write the score as sixth column of the labels.")] = False
    save_json: Annotated[bool, _flag(help="Write detections.json.")] = False
    save_crop: Annotated[bool, _flag(help="Write crops/<class>/*.jpg.")] = False
    nosave: Annotated[bool, _flag(help="Write no drawn pictures or videos.")] = False
    classes: Annotated[tuple[str, ...] | None, _flag(help="Keep these class ids or names only.")] = None
    agnostic_nms: Annotated[bool, _flag(help="Suppress across classes.")] = False
    augment: Annotated[bool, _flag(help="Test-time augmentation.")] = False
    project: Annotated[str, _flag(help="Folder of the run folders.")] = "runs/detect"
    name: Annotated[str, _flag(help="Name of the run folder.")] = "exp"
    exist_ok: Annotated[bool, _flag(help="Write into an existing run folder.")] = False
    line_thickness: Annotated[int | None, _flag(help="Of boxes, in pixels; by image size.")] = None
    hide_labels: Annotated[bool, _flag(help="Draw boxes without class names.")] = False
    hide_conf: Annotated[bool, _flag(help="Draw class names without scores.")] = False
    half: Annotated[bool, _flag(help="Compute in 16 bits where the device can.")] = False
    threads: Annotated[int | None, _flag(help="Of the processor; all cores by default.")] = None
    powersave: Annotated[int, _flag(help="Cores for ncnn: 0 all, 1 the small ones, 2 the big ones.")] = 0


def detect(config: DetectConfig) -> DetectResult:
    """Look at every frame of the source and write what was found to a new run folder.

    Raises:
        UserError: Weights, source or settings cannot be used; nothing has been written then.
    """
    if config.view_img:
        check_window_system()
    model = load(
        config.weights,
        device=config.device,
        half=config.half,
        threads=config.threads,
        powersave=config.powersave,
        conf=config.conf_thres,
        iou=config.iou_thres,
        max_det=config.max_det,
        classes=config.classes,
        agnostic_nms=config.agnostic_nms,
        img_size=config.img_size,
        augment=config.augment,
    )
    source = open_source(config.source)
    model.warm_up()
    run = RunFolder.create(project=config.project, name=config.name, exist_ok=config.exist_ok)
    logger.info("run folder: %s", run.path)
    run.write_config(config)
    options = WriteOptions(
        pictures=not config.nosave,
        txt=config.save_txt,
        conf=config.save_conf,
        crops=config.save_crop,
        json=config.save_json,
    )
    draw = partial(
        Detections.draw,
        hide_labels=config.hide_labels,
        hide_conf=config.hide_conf,
        line_thickness=config.line_thickness,
    )
    result = run_detection(source, model=model, folder=run.path, options=options, draw=draw, view=config.view_img)
    run.write_result(plain(result))
    logger.info("results: %s", run.path)
    return result


if __name__ == "__main__":
    run_script(detect, DetectConfig)
