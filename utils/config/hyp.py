"""The v5.0 hyper-parameters, their ranges, and their YAML files."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from utils.config.shipped import find_shipped
from utils.errors import ConfigError
from utils.storage.files import read_yaml

# Settings that must be in [0, 1].
_FRACTIONS = (
    "hsv_h",
    "hsv_s",
    "hsv_v",
    "translate",
    "flipud",
    "fliplr",
    "mosaic",
    "mosaic9",
    "mixup",
    "iou_t",
    "label_smoothing",
)


@dataclass(frozen=True, kw_only=True)
class Hyp:
    """Hyper-parameters of training; the defaults are v5.0's hyp.scratch.

    Gains apply to a network with 640 px images, 80 classes and three heads; the loss scales them to the actual ones.
    """

    lr0: float = 0.01  # initial learning rate
    lrf: float = 0.2  # final learning rate as a share of lr0
    momentum: float = 0.937  # SGD momentum, Adam beta1
    weight_decay: float = 5e-4
    warmup_epochs: float = 3.0
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1
    box: float = 0.05  # box loss gain
    cls: float = 0.5  # class loss gain
    cls_pw: float = 1.0  # weight of positive classes
    obj: float = 1.0  # objectness loss gain
    obj_pw: float = 1.0  # weight of positive objectness
    iou_t: float = 0.2  # accepted for v5.0 files; training does not use it
    anchor_t: float = 4.0  # largest ratio between a box and an anchor that matches it
    fl_gamma: float = 0.0  # focal loss gamma, 0 is off
    hsv_h: float = 0.015
    hsv_s: float = 0.7
    hsv_v: float = 0.4
    degrees: float = 0.0  # rotation, plus or minus
    translate: float = 0.1  # share of the image, plus or minus
    scale: float = 0.5  # gain, plus or minus
    shear: float = 0.0  # degrees, plus or minus
    perspective: float = 0.0  # 0 to 0.001
    flipud: float = 0.0  # probability
    fliplr: float = 0.5  # probability
    mosaic: float = 1.0  # probability
    mosaic9: float = 0.0  # probability that a mosaic has nine images instead of four
    mixup: float = 0.0  # probability
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not math.isfinite(value):
                raise ConfigError(f"hyper-parameter {name}: got {value}, expected a finite number")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"hyper-parameter {name}: got {value}, expected 0 to 1")
        if self.anchor_t <= 1:
            raise ConfigError(f"hyper-parameter anchor_t: got {self.anchor_t}, expected more than 1")
        if self.lr0 <= 0:
            raise ConfigError(f"hyper-parameter lr0: got {self.lr0}, expected more than 0")

    def to_dict(self) -> dict[str, float]:
        """Return the hyper-parameters as plain numbers, for YAML and checkpoints."""
        return asdict(self)


def hyp_from_dict(values: dict[str, object], *, where: str) -> Hyp:
    """Build hyper-parameters from `values` after checking names and types; `where` names their origin in messages.

    Raises:
        ConfigError: A name is unknown (the message lists the known ones), or a value is not a number.
    """
    known = {field.name for field in fields(Hyp)}
    # Files of v5.0 and later also contain settings that other tools use.
    ignored = {"anchors", "copy_paste"}
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if name in ignored:
            continue
        if name not in known:
            raise ConfigError(f"{where}: unknown hyper-parameter {name!r}; known: {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"{where}: {name} is {value!r}, expected a number")
        try:
            numbers[name] = float(value)  # YAML reads 1e-3 as text
        except ValueError:
            raise ConfigError(f"{where}: {name} is {value!r}, expected a number") from None
    try:
        return Hyp(**numbers)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def load_hyp(path: str | Path) -> Hyp:
    """Read a hyper-parameter YAML such as data/hyp/scratch.yaml."""
    return hyp_from_dict(read_yaml(find_shipped(path, "data/hyp"), what="hyper-parameter"), where=str(path))
