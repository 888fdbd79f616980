"""The settings of prune.py, and what their texts mean."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from deploy.choices import LatencyPrecision
from deploy.formats import check_format, check_precision
from pruning.choices import MEASURED_CRITERIA, CriterionName, Scope, Shortcuts
from pruning.selection.latency import LatencyTable
from pruning.selection.rounding import Direction, Rounding
from pruning.selection.settings import PlanSettings, parse_limits
from pruning.selection.targets import parse_target
from tasks.settings import DEFAULT_IMG_SIZE, TaskSettings
from utils.config.cli import spelled
from utils.config.values import check_least
from utils.errors import ConfigError

# Measured best of 0, .6 and 1, see docs/pruning.md.
_BALANCE = 0.6
# Value of a bare `--sensitivity`.
SHARES = "0.25 0.5 0.75"
MAX_COST_POWER = 4.0  # far beyond use; keeps costs to this power within float64


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Cut the channels of a trained detector or classifier that matter least."""

    weights: str = ""  # checkpoint to prune
    cfg: str = ""  # architecture YAML, or name of a classifier, that the weights are checked against
    percent: float | None = None  # share of channels below the threshold, of those that may go; 0.5 by default
    criterion: CriterionName = "bn_gamma"  # what makes a channel important
    bn_percent: float | None = None  # prune by scales and by kernels at once: the share that is cut by scales
    conv_percent: float | None = None  # and the share that is cut by the L1 norm of kernels
    drop_bottlenecks: tuple[str, ...] = ()  # shortcut bottlenecks to remove: all, or paths such as model.4.m.0
    shortcuts: Shortcuts = "skip"  # channels that shortcuts join: skip leaves them alone, tied prunes them together
    # widths to keep: pow2 (the default), a number to be a multiple of, or none; for ms and speedup the fast ones
    round: str = ""
    round_direction: Direction = "nearest"  # up, down or nearest
    min_channels: int = 1  # fewest channels of a layer
    # prune until macs=... or params=...: a number with K, M or G, or a percentage of now; or ms=8, or speedup=3
    target: str = ""
    runtime: str = "ncnn"  # where ms and speedup count: ncnn, onnx, openvino, torchscript or tensorrt
    precision: LatencyPrecision = "fp32"  # in which the network is served there: fp32, fp16 or int8
    threads: int = 1  # of the processor there
    latency_table: str = ""  # times of the layers there, by default measured once on this machine and cached
    latency_layers: str = ""  # only write a folder of layers for another device to time, which gives such a table
    # with a target: divide importance by what a channel costs, to this power; by default 1 for ms, speedup and the
    # criterion fisher, else 0
    cost_power: float | None = None
    # with a target: least width of a layer, as a share of the one it would have if all layers were cut alike, 0 to 1;
    # by default 0.6 for the criteria taylor and fisher, else 0
    balance: float | None = None
    protect: tuple[str, ...] = ()  # patterns of layer paths that are kept whole, such as "model.2*"
    # highest share of the channels of layers to prune as PATTERN=SHARE, such as "model.2*=0.2"; the last match counts
    limit: tuple[str, ...] = field(default=(), metadata={"adds_up": True})
    unstructured: float | None = None  # also set this share of all single weights to zero; alone, no channel is cut
    unstructured_scope: Scope = (
        "global"  # one threshold for the network (global), or the share in every layer (layer)
    )
    plan: str = ""  # apply this plan.json instead of making one
    constants: bool = True  # --no-constants drops what cut channels still emit; else the next layers take it over
    strict: bool = False  # refuse, rather than mend, a percent that would empty a layer
    dry_run: bool = False  # show what would be cut and write nothing
    scan: bool = False  # measure mAP or accuracy over percents, find the cliff and recommend a percent; needs --data
    tolerance: float = 0.01  # mAP or accuracy that the recommended percent may lose before fine-tuning
    # prune nothing, but measure mAP or accuracy with one layer at a time pruned by each of these shares, without
    # training; alone: .25 .5 .75; needs --data
    sensitivity: tuple[float, ...] = ()
    sensitivity_images: int = 0  # images of val for that; 0 takes all
    # data set YAML, or a classifier's images as of train.py: measure before and after; needed by scan, taylor, fisher
    data: str = ""
    # longer side in pixels, for MACs and mAP; a classifier has its own size
    img_size: Annotated[int, spelled("--img", "--imgsz")] = DEFAULT_IMG_SIZE
    batch_size: Annotated[int, spelled("--batch")] = 32  # images per step
    taylor_batches: int = 16  # training batches over which taylor and fisher average
    hyp: str = ""  # hyper-parameter YAML: augmentation and loss of these batches; by default that of train.py
    iterative: bool = False  # with taylor: rank, cut and train by turns; --percent or --target says how far
    step: int = 512  # channels that each round of --iterative cuts
    updates: int = 30  # optimiser steps after each cut
    lr: float = 1e-3  # their learning rate
    notest: Annotated[bool, spelled("--noval")] = False  # do not measure after each round, only before and after all
    resume: str = ""  # continue the killed run with --iterative or --sensitivity of this folder, as it was begun
    device: str = ""  # cpu, or the number of a GPU; empty takes a GPU if there is one
    workers: int = 8  # data loading processes, at most one per core
    cache_dir: str = ""  # where the label index is cached, by default beside the data; or fetched images
    seed: int = 0  # of the random criterion, and of the images and augmentation that taylor and fisher see
    noplots: bool = False  # draw nothing
    project: str = "runs/prune"  # where run folders are made
    name: str = "exp"  # name of the run folder
    exist_ok: bool = False  # use the folder even if it exists

    def __post_init__(self) -> None:
        if not self.weights and not self.resume:
            raise ConfigError("no --weights given; give the checkpoint to prune, or --resume with a run folder")
        for name in ("percent", "bn_percent", "conv_percent", "unstructured"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value}: expected a share from 0 up to, not including, 1, such as 0.5")
        check_least(self, img_size=1, batch_size=1, workers=0, min_channels=1, tolerance=0)
        check_least(self, taylor_batches=1, step=1, updates=0, threads=1, sensitivity_images=0)
        self._check_ways()
        self._check_iterative()
        self._check_sensitivity()
        if self.unstructured is None and self.unstructured_scope != PruneConfig.unstructured_scope:
            raise ConfigError("--unstructured-scope is for single weights; give --unstructured or leave it out")
        if self.cost_power is not None and not 0 <= self.cost_power <= MAX_COST_POWER:
            raise ConfigError(
                f"--cost-power {self.cost_power}: expected a number from 0 to {MAX_COST_POWER:g}, such as 0.5"
            )
        if self.cost_power and not self.target:
            raise ConfigError("--cost-power weighs what --target counts; give --target or leave --cost-power out")
        if self.balance is not None and not 0 <= self.balance <= 1:
            raise ConfigError(f"--balance {self.balance}: expected a share from 0 to 1, such as 0.6")
        if self.balance and not self.target:
            raise ConfigError("--balance limits what --target takes; give --target or leave --balance out")
        if not self.data and (self.scan or self.sensitivity or self.is_measured):
            measuring = f"--criterion {self.criterion}"
            if self.scan or self.sensitivity:
                measuring = "--scan" if self.scan else "--sensitivity"
            raise ConfigError(f"{measuring} measures on images; give --data")
        assert self.rounding
        parse_limits(self.limit)
        check_format(self.runtime, flag="--runtime")
        check_precision(self.runtime, self.precision)
        self._check_latency()

    def _check_latency(self) -> None:
        """Refuse a table that does not exist, and a list of layers beside what it excludes."""
        if self.is_timed and self.latency_table and not Path(self.latency_table).is_file():
            raise ConfigError(f"--latency-table {self.latency_table}: no such file; check the path")
        if not self.latency_layers:
            return
        if self.latency_table or self.resume:
            other = "--latency-table" if self.latency_table else "--resume"
            raise ConfigError(f"--latency-layers only writes what a device needs to measure; leave {other} out")
        if self.runtime != "ncnn":
            raise ConfigError(
                f"--latency-layers: the program for devices has ncnn alone; leave --runtime {self.runtime} out"
            )

    def _check_ways(self) -> None:
        """There is one answer to how much is cut."""
        ways = {
            "--percent": self.percent is not None,
            "--bn-percent/--conv-percent": self.is_mixed,
            "--target": bool(self.target),
            "--plan": bool(self.plan),
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise ConfigError(f"{' and '.join(given)} both say how much to cut; leave one out")
        if self.scan and given and given != ["--percent"]:
            raise ConfigError(f"--scan looks for a percent and {given[0]} sets another measure; leave one out")
        if self.plan and self.drop_bottlenecks:
            raise ConfigError("--plan says which bottlenecks go; leave --drop-bottlenecks out")

    def _check_iterative(self) -> None:
        """Refuse what rounds of cutting and training cannot take: they decide as they go."""
        if not self.iterative:
            names = ("step", "updates", "lr", "notest")
            given = [name for name in names if getattr(self, name) != getattr(PruneConfig, name)]
            if given:
                raise ConfigError(f"--{given[0]} is for rounds; add --iterative or leave --{given[0]} out")
            return
        if self.criterion != "taylor":
            raise ConfigError(f"--iterative ranks by Taylor expansion, not {self.criterion}; add --criterion taylor")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"--lr {self.lr}: expected a positive number, such as 0.001")
        others = {
            "--plan": bool(self.plan),
            "--scan": self.scan,
            "--bn-percent/--conv-percent": self.is_mixed,
            "--drop-bottlenecks": bool(self.drop_bottlenecks),
            "--dry-run": self.dry_run,
            "--strict": self.strict,
            "--balance": bool(self.balance),
        }
        for name, is_given in others.items():
            if is_given:
                raise ConfigError(f"--iterative decides round by round, without {name}; leave one of them out")

    def _check_sensitivity(self) -> None:
        """Refuse shares that leave nothing or prune nothing, and what decides about the whole network."""
        for share in self.sensitivity:
            if not 0 < share < 1:
                raise ConfigError(f"--sensitivity {share}: expected shares between 0 and 1, such as {SHARES}")
        others = {
            "--percent": self.percent is not None,
            "--bn-percent/--conv-percent": self.is_mixed,
            "--target": bool(self.target),
            "--plan": bool(self.plan),
            "--scan": self.scan,
            "--iterative": self.iterative,
            "--drop-bottlenecks": bool(self.drop_bottlenecks),
            "--unstructured": self.unstructured is not None,
            "--latency-layers": bool(self.latency_layers),
            "--dry-run": self.dry_run,
        }
        for name, is_given in others.items():
            if self.sensitivity and is_given:
                raise ConfigError(f"--sensitivity only measures, one layer at a time; leave {name} out")

    @property
    def is_mixed(self) -> bool:
        """Whether scales and kernels decide together."""
        return self.bn_percent is not None or self.conv_percent is not None

    @property
    def is_unstructured_only(self) -> bool:
        """Whether single weights become zero and nothing asks for channels to be cut."""
        asked = (self.percent, self.bn_percent, self.conv_percent, self.target, self.plan, self.drop_bottlenecks)
        return self.unstructured is not None and not (any(asked) or self.scan or self.iterative)

    @property
    def rounding(self) -> Rounding:
        """Widths to keep, unless the latency table says which are fast."""
        return Rounding.parse(self.round or "pow2", direction=self.round_direction)

    @property
    def is_timed(self) -> bool:
        """Whether the target is a time."""
        return bool(self.target) and parse_target(self.target).quantity == "ms"

    @property
    def has_fast_widths(self) -> bool:
        """Whether widths are those that the latency table found fast."""
        return self.is_timed and not self.round

    @property
    def is_measured(self) -> bool:
        """Whether importance is measured on training batches."""
        return self.criterion in MEASURED_CRITERIA

    @property
    def power(self) -> float:
        """Power of a channel's cost by which its importance is divided."""
        if self.cost_power is not None:
            return self.cost_power
        return float(self.is_timed or (bool(self.target) and self.criterion == "fisher"))

    @property
    def least_share(self) -> float:
        """Least width of a layer, as a share of the one it would have if all layers were cut alike."""
        if self.balance is not None:
            return self.balance
        return _BALANCE if self.target and self.is_measured and not self.iterative else 0.0

    def plan_settings(
        self,
        image_chw: tuple[int, int, int],
        trace_chw: tuple[int, int, int] | None = None,
        latency: LatencyTable | None = None,
    ) -> PlanSettings:
        """Return what the planner needs of these settings.

        Args:
            image_chw: Size of an image that costs are counted for.
            trace_chw: Size of an image to trace the network with.
            latency: Times of the layers, for a target in milliseconds.
        """
        return PlanSettings(
            percent=self.percent,
            criterion=self.criterion,
            bn_percent=self.bn_percent,
            conv_percent=self.conv_percent,
            drop_bottlenecks=self.drop_bottlenecks,
            shortcuts=self.shortcuts,
            rounding=self.rounding,
            min_channels=self.min_channels,
            target=parse_target(self.target) if self.target else None,
            cost_power=self.power,
            balance=self.least_share,
            latency=latency,
            has_fast_widths=self.has_fast_widths,
            protect=self.protect,
            limits=parse_limits(self.limit),
            strict=self.strict,
            image_chw=image_chw,
            trace_chw=trace_chw,
            seed=self.seed,
        )

    def training(self) -> TaskSettings:
        """Return the settings of the training on whose batches importance is measured and rounds train."""
        return TaskSettings(
            weights=self.weights,
            data=self.data,
            img_size=(self.img_size,),
            batch_size=self.batch_size,
            workers=self.workers,
            cache_dir=self.cache_dir,
            seed=self.seed,
        )
