"""The settings of export.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from deploy.choices import Int8Method, Precision
from deploy.formats import FORMATS, check_format
from deploy.settings import ExportSettings, FormatSettings, Int8Budget, RuntimeOptions
from utils.config.cli import spelled
from utils.config.values import check_least, check_shares, height_width
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a detector or a classifier to the runtimes that serve it, and compare each file with the network."""

    weights: str  # checkpoint to export: dense, pruned or fine-tuned
    include: tuple[str, ...] = ("ncnn",)  # formats to write: ncnn, onnx, openvino, tensorrt, torchscript
    img_size: Annotated[tuple[int, ...], spelled("--img", "--imgsz")] = (640,)  # one side, or height and width
    batch_size: Annotated[int, spelled("--batch")] = 1  # images per call
    dynamic: bool = False  # any batch and any multiple of the stride
    half: bool = False  # weights in 16 bits
    int8: bool = False  # weights and activations in 8 bits; needs --data for calibration
    data: str = ""  # data set YAML: mAP before and after on val, and calibration on train
    calib_images: int = 128  # images of the train split that int8 ranges are learnt from
    calib_method: Int8Method = "mse"  # how int8 ranges are chosen: least squared error, extremes, or kl
    int8_skip: tuple[str, ...] = ()  # patterns of layer paths that int8 leaves out, such as "model.1.*"
    int8_search: bool = False  # find the few layers that cost most mAP in int8 and leave them out
    # most milliseconds of a call, such as ms=12: layers by measured times in int8 or in floating point, to lose least
    int8_budget: str = ""
    # run folder of quantize.py --qat-epochs --runtime for these weights: its integers, nothing is calibrated
    int8_trained: str = ""
    opset: int = 17  # of ONNX, 11 to 20; attention needs 14, int8 needs 13
    nms: bool = False  # ONNX: decoding and suppression inside, boxes come out
    conf_thres: Annotated[float, spelled("--conf")] = 0.25  # least score of a box, for --nms
    iou_thres: Annotated[float, spelled("--iou")] = 0.45  # overlap above which the weaker box is dropped, for --nms
    max_det: int = 300  # most boxes per image, for --nms
    compute_capability: str = ""  # TensorRT without a GPU: which one the engine is for, such as 8.6
    verify_only: bool = False  # write nothing; compare the files that are there
    verify_images: int = 16  # images that heads and boxes are compared on
    threads: int | None = None  # of the processor, for times; all cores by default
    # another network, such as the dense one, that is exported to a temporary place and timed in turns with each file
    beside: str = ""
    workers: int = 8  # data loading processes, at most one per core
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched images
    output: str = ""  # folder of the files; beside the weights by default
    project: str = "runs/export"  # where run folders, with the report, are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists

    def __post_init__(self) -> None:
        height_width(self.img_size)
        check_least(self, batch_size=1, calib_images=1, verify_images=1, workers=0, max_det=1)
        RuntimeOptions(threads=self.threads)
        check_shares(self, "conf_thres", "iou_thres")
        for name in self.include:
            check_format(name, flag="--include")
        if not self.include:
            raise ConfigError("--include: no format given; name at least one, such as ncnn")
        if self.half and self.int8:
            raise ConfigError("--half and --int8 are two precisions; choose one (int8 leaves the rest in 16 bits)")
        if self.int8 and not self.data:
            raise ConfigError("--int8 learns ranges from images; give --data")
        self._check_int8()
        if self.nms and ("onnx" not in self.include or self.half or self.int8):
            raise ConfigError("--nms is for ONNX in fp32; give --include onnx without --half and --int8")

    def _check_int8(self) -> None:
        if self.int8_search and not self.int8:
            raise ConfigError("--int8-search finds what int8 leaves out; give --int8")
        if self.int8_skip and not self.int8:
            raise ConfigError("--int8-skip says what int8 leaves out; give --int8")
        if self.int8_budget:
            self._check_int8_budget()
        chosen = self.int8_search or self.int8_skip or self.int8_budget
        if self.int8_trained and (not self.int8 or chosen or len(self.include) != 1):
            raise ConfigError(
                "--int8-trained has its layers chosen, for one runtime; give --int8, one format to --include, and "
                "leave --int8-search, --int8-budget and --int8-skip out"
            )

    def _check_int8_budget(self) -> None:
        parse_milliseconds(self.int8_budget)
        if not self.int8:
            raise ConfigError("--int8-budget says how long a call may take with int8; give --int8")
        if self.int8_search:
            raise ConfigError("--int8-budget and --int8-search both choose what int8 leaves out; give one of them")
        for name in self.include:
            if not (FORMATS[name].int8 and FORMATS[name].entry):
                raise ConfigError(
                    f"--int8-budget: {name} does not time layers one by one here; leave it out of --include, or "
                    "give no budget"
                )

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return height_width(self.img_size)

    @property
    def folder(self) -> Path:
        """Where the artefacts go."""
        return Path(self.output) if self.output else Path(self.weights).parent

    @property
    def precision(self) -> Precision:
        """Precision that the files compute in."""
        return "int8" if self.int8 else "fp16" if self.half else "fp32"

    @property
    def special(self) -> FormatSettings:
        """Settings that only some formats have."""
        return FormatSettings(
            int8_skip=self.int8_skip,
            int8_search=self.int8_search,
            int8_budget=self._budget,
            calib_method=self.calib_method,
            compute_capability=self.compute_capability,
        )

    @property
    def _budget(self) -> Int8Budget | None:
        if not self.int8_budget:
            return None
        return Int8Budget(milliseconds=parse_milliseconds(self.int8_budget), threads=self.threads)

    @property
    def settings(self) -> ExportSettings:
        """Settings that every exporter needs."""
        return ExportSettings(
            image_hw=self.image_hw,
            batch_size=self.batch_size,
            dynamic=self.dynamic,
            precision=self.precision,
            opset=self.opset,
        )


def parse_milliseconds(text: str) -> float:
    """Read a time such as ms=12.

    Raises:
        ConfigError: It is none.
    """
    name, _, number = text.lower().partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if name != "ms" or not 0 < value < math.inf:
        raise ConfigError(f"--int8-budget {text}: expected milliseconds, such as ms=12")
    return value
