"""The settings of detect.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

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
    view_img: Annotated[bool, _flag(help="Show the images; q ends.")] = False
    save_txt: Annotated[bool, _flag(help="Write labels/*.txt.")] = False
    save_conf: Annotated[bool, _flag(help="Write the score as sixth column of the labels.")] = False
    save_json: Annotated[bool, _flag(help="Write detections.json.")] = False
    save_crop: Annotated[bool, _flag(help="Write crops/<class>/*.jpg.")] = False
    nosave: Annotated[bool, _flag(help="Write no drawn images or videos.")] = False
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
