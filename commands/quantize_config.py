"""The settings of quantize.py, and what their texts mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from commands.train_config import TrainConfig
from deploy.formats import FORMATS
from deploy.settings import RuntimeOptions
from quantization.choices import Layout, Part
from quantization.ranges.config import LayerBits, Observer, QuantConfig, WeightRange, check_bits
from tasks.settings import TaskSettings
from utils.config.choices import Amp, Augment
from utils.config.cli import spelled
from utils.config.values import check_least, height_width
from utils.errors import ConfigError

# Images per step when the network is measured.
_VAL_BATCH = 16
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6}
# Our own arithmetic.
INTEGER = "integer"
# Folder, in that of the run, of the training with simulated rounding.
QAT_NAME = "qat"


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Quantise a detector or a classifier to integers of 2 to 16 bits, and measure it before and after."""

    weights: str = ""  # checkpoint: a detector, or a classifier of this project; dense, pruned or with frozen zeros
    data: str = ""  # data set YAML; for a classifier a folder of class folders, an .npz, mnist or cifar10
    img_size: Annotated[tuple[int, ...], spelled("--img", "--imgsz")] = (640,)  # one side, or height and width
    weight_bits: int = 8  # of every weight, 2 to 16
    activation_bits: int = 8  # of every value that a convolution or linear layer reads, 2 to 16
    head_bits: int = 8  # least of the layers that return the outputs, and of what they read
    observer: Observer = "mse"  # where ranges of activations end
    percentile: float = 99.99  # percent of the values inside, for --observer percentile
    weight_range: WeightRange = "auto"  # where ranges of weights end: minmax, or mse, which auto takes up to 4 bits
    per_tensor: bool = False  # one scale per weight; by default each output channel has its own
    weight_asymmetric: bool = False  # let the integer of a zero weight be other than 0
    activation_symmetric: bool = False  # make the integer of a zero activation 0
    # exceptions as PATTERN=BITS or PATTERN=WEIGHTS/ACTIVATIONS, one may be empty, such as "model.24*=8" or "conv1=/8"
    layers: tuple[str, ...] = ()
    calib_images: int = 64  # images of the train split that ranges are learnt from
    compensate: bool = True  # --no-compensate rounds to the nearest; else so that results change least
    layout: Layout = "dense"  # how weights are stored; coo, csr and csc are for networks with many zeros
    yaml: bool = False  # also write the network as YAML, for people
    float_yaml: bool = False  # also write its weights in floating point as YAML, in the same layout
    fake: bool = False  # also measure the network with rounded real numbers, as quantisation-aware training sees it
    sensitivity: tuple[int, ...] = ()  # measure with one layer at a time in so many bits, all else in floats
    sensitivity_part: Part = "both"  # what of that layer: its weights, the values it reads, or both
    sensitivity_images: int = 0  # images of val for these measurements and those of --budget; 0 takes all
    budget: str = ""  # most bytes of all weights, such as 500K: bits of each layer's weights are chosen to fit
    budget_bits: tuple[int, ...] = (4, 6, 8)  # that --budget chooses from
    # then train with simulated rounding for so many passes over the training images; 0 does not train
    qat_epochs: int = 0
    lr0: float = 0.0005  # first learning rate of that training, which AdamW lowers along a cosine
    # train only where rounding alone loses more than this of mAP50-95 or accuracy on val, such as 0.005
    max_map_drop: float | None = None
    # whose arithmetic is trained for and written: integer, ncnn, onnx, openvino or tensorrt, which compute in 8 bits
    runtime: str = "integer"
    learn_scales: bool = True  # --no-learn-scales trains weights alone; else also the scale of each weight and value
    teacher: str = ""  # checkpoint whose answers are learnt beside the labels; by default --weights, not quantised
    distill: float = 1.0  # weight of the teacher's answers
    features: float = 0.0  # weight of what the layers of --weights read, without another teacher
    batch_size: Annotated[int, spelled("--batch")] = 16  # images per batch of that training, over all processes
    hyp: str = ""  # hyper-parameter YAML of that training; by default as for train.py
    augment: Augment = "none"  # for classifiers: none, crop, crop-flip, resized-crop
    seed: int = 0  # of order and augmentation
    device: str = ""  # of that training: cpu, 0, or 0,1 under torchrun; empty takes a GPU if there is one
    amp: Amp = "auto"  # mixed precision of that training: auto, bf16, fp16, off
    resume: str = ""  # continue the latest run with --qat-epochs, or the run in this folder
    threads: int | None = None  # of the processor; all cores by default
    workers: int = 8  # data loading processes, at most one per core
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched images
    output: str = ""  # folder of the artefact; beside the weights by default
    project: str = "runs/quantize"  # where run folders, with the report, are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists

    def __post_init__(self) -> None:
        if self.resume:
            return
        for name in ("weights", "data"):
            if not getattr(self, name):
                raise ConfigError(f"no --{name} given; give a checkpoint and the data it was trained on")
        height_width(self.img_size)
        check_least(self, calib_images=1, sensitivity_images=0, workers=0, qat_epochs=0, distill=0, features=0)
        RuntimeOptions(threads=self.threads)
        for bits in (*self.sensitivity, *self.budget_bits):
            check_bits(bits, what="--sensitivity and --budget-bits")
        if self.budget.lower().startswith("ms"):
            self._refuse_milliseconds()
        self._check_budget(self.quantisation())
        self._check_training()

    def _refuse_milliseconds(self) -> None:
        runtime = "ncnn" if self.is_all_integers else self.runtime
        raise ConfigError(
            f"--budget {self.budget}: milliseconds are of a runtime that mixes int8 with floating point, which "
            f"trains nothing: export.py --include {runtime} --int8 --int8-budget {self.budget}; here give bytes, "
            "such as 500K"
        )

    def _check_training(self) -> None:
        if not 0 < self.lr0 < math.inf:
            raise ConfigError(f"--lr0 {self.lr0}: expected a positive number, such as 0.0005")
        self._check_runtime()
        if self.max_map_drop is not None and not (self.qat_epochs and 0 <= self.max_map_drop < 1):
            raise ConfigError(
                f"--max-map-drop {self.max_map_drop}: expected points from 0 up to, not including, 1, such as 0.005, "
                "with --qat-epochs"
            )
        if self.qat_epochs and self.sensitivity:
            raise ConfigError("--sensitivity is of the network before training; run it without --qat-epochs")
        if self.qat_epochs:
            self.training(Path("quantize"))

    def _check_runtime(self) -> None:
        known = [name for name, form in FORMATS.items() if form.int8]
        if self.is_all_integers:
            return
        if self.runtime not in known:
            raise ConfigError(f"--runtime {self.runtime}: expected {INTEGER}, {', '.join(known[:-1])} or {known[-1]}")
        if not self.qat_epochs:
            raise ConfigError(
                f"--runtime {self.runtime} is for training with simulated rounding; give --qat-epochs, such as 20, "
                f"or use export.py --include {self.runtime} --int8, which trains nothing"
            )
        if self.budget or self.sensitivity or self.layers or (self.weight_bits, self.activation_bits) != (8, 8):
            raise ConfigError(
                f"--runtime {self.runtime} computes in 8 bits; leave --weight-bits, --activation-bits, --layers, "
                "--sensitivity and --budget out"
            )

    @property
    def is_all_integers(self) -> bool:
        """Whether everything is computed in integers, not only what layers with weights read."""
        return self.runtime == INTEGER

    def training(self, folder: Path) -> TrainConfig:
        """Return the settings of the training with simulated rounding, which gets a folder in that of the run."""
        return TrainConfig(
            weights=self.weights,
            data=self.data,
            img_size=(max(self.image_hw),),
            epochs=self.qat_epochs,
            batch_size=self.batch_size,
            hyp=self.hyp,
            augment=self.augment,
            optimizer="adamw",
            lr0=self.lr0,
            weight_decay=0.0,
            # The first steps of Adam are as large as the rate, in every weight at once.
            warmup_epochs=1.0,
            seed=self.seed,
            workers=self.workers,
            cache_dir=self.cache_dir,
            device=self.device,
            amp=self.amp,
            project=str(folder),
            name=QAT_NAME,
            exist_ok=True,
        )

    def _check_budget(self, settings: QuantConfig) -> None:
        if not self.budget:
            return
        parse_bytes(self.budget)
        if not self.budget_bits:
            raise ConfigError("--budget-bits: none given; name some from 2 to 16")
        if self.sensitivity:
            raise ConfigError("--budget measures a table of its own; leave --sensitivity out, or run it by itself")
        if any(bits.weights for bits in settings.layers.values()):
            raise ConfigError("--budget chooses the bits of all weights; with it --layers takes PATTERN=/ACTIVATIONS")

    @property
    def image_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return height_width(self.img_size)

    def data_settings(self) -> TaskSettings:
        """Return what reading and measuring the data needs."""
        return TaskSettings(
            weights=self.weights,
            data=self.data,
            img_size=(max(self.image_hw),),
            batch_size=_VAL_BATCH,
            workers=self.workers,
            cache_dir=self.cache_dir,
        )

    def quantisation(self) -> QuantConfig:
        """Return what the quantiser needs.

        Raises:
            ConfigError: Bits or another setting are out of range.
        """
        return QuantConfig(
            weight_bits=self.weight_bits,
            activation_bits=self.activation_bits,
            head_bits=self.head_bits,
            weight_symmetric=not self.weight_asymmetric,
            activation_symmetric=self.activation_symmetric,
            per_channel=not self.per_tensor,
            observer=self.observer,
            weight_range=self.weight_range,
            percentile=self.percentile,
            layers=dict(parse_layer(text) for text in self.layers),
        )


def parse_layer(text: str) -> tuple[str, LayerBits]:
    """Read `PATTERN=BITS` or `PATTERN=WEIGHTS/ACTIVATIONS`, where one of the two may be left empty.

    Raises:
        ConfigError: It is neither, or the bits are out of range.
    """
    pattern, _, bits = text.rpartition("=")
    weights, slash, activations = bits.partition("/")
    numbers = [weights, activations if slash else weights]
    if not pattern or not any(numbers) or not all(number.isdecimal() for number in numbers if number):
        raise ConfigError(f'--layers {text}: expected such as "model.24*=8", "conv1=4/8" or "conv1=/8"')
    found = [int(number) if number else None for number in numbers]
    try:
        return pattern, LayerBits(weights=found[0], activations=found[1])
    except ConfigError as error:
        raise ConfigError(f"--layers {text}: {error}") from None


def parse_bytes(text: str) -> float:
    """Read a number of bytes, such as 500K (of 1000 bytes each) or 1.2M.

    Raises:
        ConfigError: It is none.
    """
    number = text.lower().rstrip("km")
    try:
        value = float(number) * _UNITS[text.lower()[len(number) :]]
        is_valid = math.isfinite(value) and value > 0
    except (ValueError, KeyError):
        is_valid = False
    if not is_valid:
        raise ConfigError(f"--budget {text}: expected bytes, such as 500K or 1.2M")
    return value
