"""The settings of val.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from utils.config.choices import Engine
from utils.config.cli import spelled
from utils.config.values import check_least
from utils.errors import ConfigError

# v5.0: 256 to 1536 in steps of 128.
STUDY_SIZES = tuple(range(256, 1536 + 128, 128))
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
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched images
    project: str = "runs/val"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("--weights: none given; name at least one checkpoint")
        check_least(self, batch_size=1, img_size=1, workers=0)
