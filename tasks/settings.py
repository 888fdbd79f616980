"""Settings of network and data that verbs share; imports no torch, so that command lines answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from utils.config.choices import Augment, Engine
from utils.config.cli import spelled
from utils.config.values import check_least
from utils.errors import ConfigError

# Longer side in pixels of a detector's images where none is given.
DEFAULT_IMG_SIZE = 640


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Network and data of a training, and how images are loaded."""

    weights: str = ""  # checkpoint to start from (ours or an official YOLOv5 .pt); empty trains from scratch
    # architecture YAML, or a classifier: resnet20, torchvision:resnet18, ...; empty takes that of the weights
    cfg: str = ""
    # data set YAML; for a classifier a folder of class folders, an .npz, mnist or cifar10 (fetched once)
    data: str = "data/bccd.yaml"
    # training size, and optionally test size; by default 640, for class folders 224
    img_size: Annotated[tuple[int, ...], spelled("--img", "--imgsz")] = ()
    epochs: int = 300  # passes over the training images
    batch_size: Annotated[int, spelled("--batch")] = 16  # images per batch, over all processes
    seed: int = 0  # of weights, order and augmentation; the same seed gives the same run
    workers: int = 8  # data loading processes, at most one per core
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched images
    cache_images: Annotated[bool, spelled("--cache")] = False  # keep decoded images in memory
    augment: Augment = "none"  # for classifiers: none, crop, crop-flip, resized-crop
    rect: bool = False  # batches of one aspect ratio, without mosaic
    quad: bool = False  # four images to one of twice the size
    multi_scale: bool = False  # vary the image size by half
    # this many epochs at the end see no mosaics, only whole images; by default up to 20 in short runs, else none
    close_mosaic: int | None = None
    image_weights: bool = False  # draw images with badly learnt classes more often
    single_cls: bool = False  # all classes are one
    noautoanchor: bool = False  # keep the anchors even where they fit the data badly
    freeze: tuple[int, ...] = (0,)  # one number N: the first N layers; several: these layers

    def __post_init__(self) -> None:
        for name in ("img_size", "freeze"):
            value = getattr(self, name)
            if isinstance(value, int):
                object.__setattr__(self, name, (value,))
        if len(self.img_size) > 2 or any(size < 1 for size in self.img_size):
            raise ConfigError(f"--img-size {self.img_size}: expected one or two sizes, for training and testing")
        check_least(self, epochs=1, batch_size=1, workers=0, seed=0, close_mosaic=0)
        if self.image_weights and self.rect:
            raise ConfigError("--image-weights and --rect both decide the order of images; leave one out")

    @property
    def train_size(self) -> int:
        """Training size of a detector's images in pixels, before it is rounded up to a multiple of the stride."""
        return self.img_size[0] if self.img_size else DEFAULT_IMG_SIZE

    @property
    def test_size(self) -> int:
        """Test size of a detector's images in pixels, before it is rounded up to a multiple of the stride."""
        return self.img_size[-1] if self.img_size else DEFAULT_IMG_SIZE


ValTask = Literal["train", "val", "test", "speed", "study"]
# v5.0: 256 to 1536 in steps of 128.
STUDY_SIZES = tuple(range(256, 1536 + 128, 128))


@dataclass(frozen=True, kw_only=True)
class ValSettings:
    """Networks to measure, the data to measure them on, and how outputs are scored."""

    weights: tuple[str, ...]  # checkpoint or exported artefact; several detectors make an ensemble
    # data set YAML; for a classifier a folder of class folders, an .npz, mnist or cifar10 (fetched once)
    data: str = "data/bccd.yaml"
    task: ValTask = "val"  # split to measure; or time val at conf .25 and IoU .45; or measure val over image sizes
    study_sizes: tuple[int, ...] = STUDY_SIZES  # image sizes of --task study
    batch_size: Annotated[int, spelled("--batch")] = 32  # images per step
    # longer side in pixels; 640 by default, or the one size of an artefact or of a classifier
    img_size: Annotated[int | None, spelled("--img", "--imgsz")] = None
    conf_thres: Annotated[float, spelled("--conf")] = 0.001  # least score of a box
    iou_thres: Annotated[float, spelled("--iou")] = 0.6  # NMS threshold; .65 for published COCO numbers
    max_det: int = 300  # most boxes per image
    single_cls: bool = False  # treat all classes as one
    augment: bool = False  # test-time augmentation: three scales, one of them flipped
    rect: bool = True  # --no-rect pads every image to a square; else only to a multiple of the stride
    save_txt: bool = False  # write labels/<image>.txt
    save_hybrid: bool = False  # write txt of true and predicted boxes merged; the numbers then mean nothing
    save_conf: bool = False  # add the score to each line of the txt
    engine: Engine = "faster"  # package that counts the COCO numbers
    workers: int = 8  # data loading processes, at most one per core
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched images

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError("--weights: none given; name at least one checkpoint")
        check_least(self, batch_size=1, img_size=1, workers=0)

    @property
    def split(self) -> str:
        """Split to measure on."""
        return "val" if self.task in ("speed", "study") else self.task
