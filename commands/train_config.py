"""The settings of a training run: one dataclass behind flags, `--config` files, checkpoints and Python calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from engine.choices import OptimizerName, ScheduleName
from pruning.repr.settings import ReprSettings
from tasks.settings import TaskSettings
from utils.config.choices import Amp
from utils.config.cli import spelled
from utils.config.values import check_least
from utils.errors import ConfigError

DEFAULT_TRIALS = 300


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TaskSettings):
    """Train a detector, or a classifier, on your data."""

    hyp: str = ""  # hyper-parameter YAML; by default data/hyp/scratch.yaml, for classifiers data/hyp/classes.yaml
    lr0: float | None = None  # overrides the YAML's learning rate; by default Adam and kin take a small share of it
    # last learning rate, as a share of the first; by default the YAML's, which short runs without --hyp lower
    lrf: float | None = None
    momentum: float | None = None  # overrides the YAML's; Adam's beta1
    weight_decay: float | None = None  # overrides the YAML's
    warmup_epochs: float | None = None  # overrides the YAML's and its limits: 1000 batches, a tenth of the run
    label_smoothing: float | None = None  # overrides the YAML's
    # batches are accumulated until an optimiser step has seen this many images; by default 64, in short runs down to
    # 16, for classifiers 128
    nominal_batch: int | None = None
    ema_steps: int | None = None  # last steps over which weights are averaged; by default 2 % of them, at most 10000
    optimizer: OptimizerName = "sgd"  # sgd, adam, adamw or ranger
    adam: bool = False  # short for --optimizer adam
    schedule: ScheduleName = "cosine"  # decay of the learning rate; flat keeps it for 70 % of the run, for Ranger
    linear_lr: bool = False  # short for --schedule linear
    milestones: tuple[float, ...] = (0.6, 0.85)  # shares of the run after which multistep falls to a tenth
    repr: bool = False  # RePr: redundant filters are dropped for a while and come back with new values
    repr_s1: int = 20  # epochs per cycle of RePr in which all filters train
    repr_s2: int = 10  # epochs per cycle of RePr, after those, without the dropped filters
    repr_cycles: int = 3  # cycles of RePr; the rest of the run trains all filters
    repr_ratio: float = 0.3  # share of filters that RePr drops
    evolve: int = 0  # search hyper-parameters over this many trainings (alone: 300); resumable
    resume: str = ""  # continue the latest run, or the run of this last.pt
    nosave: bool = False  # keep only the final checkpoint
    notest: Annotated[bool, spelled("--noval")] = False  # validate only after the last epoch
    noplots: bool = False  # draw nothing
    save_period: int = -1  # also keep a checkpoint every this many epochs
    patience: int = 100  # stop after this many epochs without a better model; 0 never stops
    device: str = ""  # cpu, 0, or 0,1 under torchrun; empty takes a GPU if there is one
    amp: Amp = "auto"  # mixed precision: auto, bf16, fp16, off
    no_amp: bool = False  # short for --amp off
    sync_bn: bool = False  # batch norm over the images of all processes
    project: str = "runs/train"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, nominal_batch=1, ema_steps=1, evolve=0, weight_decay=0, warmup_epochs=0)
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--label-smoothing {self.label_smoothing}: expected 0 or more and less than 1")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < place < 1 for place in self.milestones):
            raise ConfigError(f"--milestones {self.milestones}: expected growing shares of the run, such as .5 .75")
        if self.repr:
            self.repr_settings.check_fits(self.epochs)

    @property
    def repr_settings(self) -> ReprSettings:
        """When RePr drops filters, and how many."""
        return ReprSettings(s1=self.repr_s1, s2=self.repr_s2, cycles=self.repr_cycles, ratio=self.repr_ratio)

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
