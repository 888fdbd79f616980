"""The settings of a training run: one dataclass behind flags, `--config` files, checkpoints and Python calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from engine.choices import OptimizerName, ScheduleName
from utils.config.choices import Amp
from utils.config.cli import spelled
from utils.config.values import check_least
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a detector on your data."""

    weights: str = ""  # checkpoint to start from (ours or an official YOLOv5 .pt); empty trains from scratch
    cfg: str = ""  # architecture YAML; empty takes that of the weights, or yolov5s.yaml
    data: str = "data/bccd.yaml"  # data set YAML
    hyp: str = "data/hyp/scratch.yaml"  # hyper-parameter YAML
    lr0: float | None = None  # overrides the YAML's learning rate; by default Adam and kin take a tenth of it
    epochs: int = 300  # passes over the training images
    batch_size: Annotated[int, spelled("--batch")] = 16  # images per batch, over all processes
    nominal_batch: int = 64  # batches are accumulated until an optimiser step has seen this many images
    # training size, and optionally test size
    img_size: Annotated[tuple[int, ...], spelled("--img", "--imgsz")] = (640,)
    rect: bool = False  # batches of one aspect ratio, without mosaic
    resume: str = ""  # continue the latest run, or the run of this last.pt
    nosave: bool = False  # keep only the final checkpoint
    notest: Annotated[bool, spelled("--noval")] = False  # validate only after the last epoch
    noautoanchor: bool = False  # keep the anchors even where they fit the data badly
    noplots: bool = False  # draw nothing
    evolve: int = 0  # search hyper-parameters over this many trainings (alone: 300); resumable
    cache_images: Annotated[bool, spelled("--cache")] = False  # keep decoded images in memory
    cache_dir: str = ""  # where the label index is cached; empty is beside the data
    close_mosaic: int = 0  # this many epochs at the end see no mosaics, only whole images
    image_weights: bool = False  # draw images with badly learnt classes more often
    device: str = ""  # cpu, 0, or 0,1 under torchrun; empty takes a GPU if there is one
    multi_scale: bool = False  # vary the image size by half
    single_cls: bool = False  # all classes are one
    optimizer: OptimizerName = "sgd"
    adam: bool = False  # short for --optimizer adam
    sync_bn: bool = False  # batch norm over the images of all processes
    workers: int = 8  # data loading processes, at most one per core
    project: str = "runs/train"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists
    quad: bool = False  # four images to one of twice the size
    linear_lr: bool = False  # short for --schedule linear
    schedule: ScheduleName = "cosine"  # decay of the learning rate
    label_smoothing: float | None = None  # overrides the YAML's
    save_period: int = -1  # also keep a checkpoint every this many epochs
    seed: int = 0  # of weights, order and augmentation; the same seed gives the same run
    patience: int = 100  # stop after this many epochs without a better model; 0 never stops
    freeze: tuple[int, ...] = (0,)  # one number N: the first N layers; several: these layers
    amp: Amp = "auto"  # mixed precision: auto, bf16, fp16, off
    no_amp: bool = False  # short for --amp off

    def __post_init__(self) -> None:
        for name in ("img_size", "freeze"):
            value = getattr(self, name)
            if isinstance(value, int):
                object.__setattr__(self, name, (value,))
        if not 1 <= len(self.img_size) <= 2 or min(self.img_size) < 1:
            raise ConfigError(f"--img-size {self.img_size}: expected one or two sizes, for training and testing")
        check_least(self, epochs=1, batch_size=1, nominal_batch=1, workers=0, evolve=0, seed=0, close_mosaic=0)
        if self.image_weights and self.rect:
            raise ConfigError("--image-weights and --rect both decide the order of images; leave one out")

    @property
    def optimizer_name(self) -> OptimizerName:
        """The optimiser, `--adam` considered."""
        return "adam" if self.adam else self.optimizer

    @property
    def schedule_name(self) -> ScheduleName:
        """The decay, `--linear-lr` considered."""
        return "linear" if self.linear_lr else self.schedule

    @property
    def amp_name(self) -> Amp:
        """The precision, `--no-amp` considered."""
        return "off" if self.no_amp else self.amp


DEFAULT_TRIALS = 300
