"""The settings of a classifier's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from engine.choices import OptimizerName, ScheduleName
from utils.config.choices import Amp, Augment
from utils.config.cli import spelled
from utils.config.hyp import Hyp
from utils.config.values import check_least
from utils.errors import ConfigError

# Learning rate and momentum (for Adam and kin beta1) where a run names none.
_RATES: Mapping[OptimizerName, float] = {"sgd": 0.05, "adam": 1e-3, "adamw": 1e-3, "ranger": 1e-3}
_MOMENTA: Mapping[OptimizerName, float] = {"sgd": 0.9, "adam": 0.9, "adamw": 0.9, "ranger": 0.95}


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Train a classifier on small images."""

    model: str = "lenet5"  # name of the network; empty for one of your own, whose files need its code
    weights: str = ""  # checkpoint of a classifier to start from, pruned or not; empty trains from scratch
    data: str = "mnist"  # mnist or cifar10 (fetched once), or an .npz of x_train, y_train, x_test and y_test
    cache_dir: str = ""  # where fetched data are kept; empty is the user's cache folder
    epochs: int = 20  # passes over the training images
    batch_size: Annotated[int, spelled("--batch")] = 128  # images per step
    augment: Augment = "none"  # none; crop: moved by up to 4 pixels; crop-flip: also mirrored, as papers do on CIFAR
    optimizer: OptimizerName = "sgd"
    lr0: float | None = None  # first learning rate; by default .05 for sgd, .001 for the others
    lrf: float = 0.01  # last learning rate, as a share of the first
    momentum: float | None = None  # of sgd, or Adam's beta1; by default .9, for ranger .95
    weight_decay: float = 5e-4  # of convolutions and linear layers
    schedule: ScheduleName = (
        "cosine"  # decay of the learning rate; flat keeps it for 70 % of the run, as Ranger wants
    )
    milestones: tuple[float, ...] = (0.5, 0.75)  # shares of the run after which multistep falls to a tenth
    warmup_epochs: float = 1.0  # the learning rate rises from zero over these, at most a tenth of the run
    label_smoothing: float = 0.0  # share of each label that is spread over all classes
    device: str = ""  # cpu, or a GPU's number; empty takes a GPU if there is one
    amp: Amp = "auto"  # mixed precision: auto, bf16, fp16, off
    seed: int = 0  # of weights, order and augmentation; the same seed gives the same run
    project: str = "runs/classify"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists
    resume: str = ""  # continue the latest run, or the run of this last.pt
    noplots: bool = False  # draw no curves

    def __post_init__(self) -> None:
        check_least(self, epochs=1, batch_size=2, seed=0, warmup_epochs=0, weight_decay=0)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--label-smoothing {self.label_smoothing}: expected 0 or more and less than 1")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < place < 1 for place in self.milestones):
            raise ConfigError(f"--milestones {self.milestones}: expected growing shares of the run, such as .5 .75")
        self.hyp()

    def hyp(self) -> Hyp:
        """Rates and momenta as the schedule wants them; the momentum is the same in the warm-up.

        Raises:
            ConfigError: A value is out of range.
        """
        momentum = _MOMENTA[self.optimizer] if self.momentum is None else self.momentum
        return Hyp(
            lr0=_RATES[self.optimizer] if self.lr0 is None else self.lr0,
            lrf=self.lrf,
            momentum=momentum,
            weight_decay=self.weight_decay,
            warmup_epochs=self.warmup_epochs,
            warmup_momentum=momentum,
            warmup_bias_lr=0.0,
        )
