"""The settings of train_sparsity.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from commands.prune_config import PruneConfig
from commands.train_config import TrainConfig
from deploy.choices import LatencyPrecision
from pruning.choices import Shortcuts, Sparsity
from pruning.selection.rounding import Direction
from pruning.sparsity.settings import Strengths
from utils.errors import ConfigError

# Value of `--sr` with which channels are chosen before they fade.
AUTO: Literal["auto"] = "auto"
# Settings of the choice of channels under --sr auto.
CHOICE = (
    *("percent", "target", "runtime", "precision", "threads", "latency_table"),
    *("round", "round_direction", "min_channels", "limit"),
)


@dataclass(frozen=True, kw_only=True)
class SparsityConfig(TrainConfig):
    """Train a detector so that whole channels fall to zero and can be pruned."""

    st: bool = True  # --no-st trains plainly, without sparsity
    sparsity: Sparsity = "bn"  # what is drawn to zero: bn, residual, kernel, mixed
    # strength; by default 1e-3 for bn and residual, 1e-5 for kernel. auto: what --target or --percent will cut is
    # chosen before training, and is at zero at its end whatever the data and the length of the run
    sr: float | Literal["auto"] | None = None
    srb: float = 5e-4  # strength on batch-norm scales for mixed
    src: float = 1e-5  # strength on convolution weights for mixed
    beta_ratio: float = 10.0  # strength on batch-norm shifts, as a multiple of that on the scales
    scale_rate: float = 1.0  # learning rate of batch-norm scales, as a multiple; above 1 suits short runs
    decay: bool = True  # --no-decay keeps the strength; else it falls to a tenth over the run
    shortcuts: Shortcuts = "skip"  # channels that shortcuts join: skip leaves them dense, tied prunes them together
    aim: float = 0.5  # share of channels you mean to cut; the advice of each epoch is for it
    percent: float | None = None  # with --sr auto: share of channels that fades; 0.5 by default
    target: str = ""  # with --sr auto: what the cut must reach: macs=50%, params=700K, ms=8, speedup=3
    runtime: str = "ncnn"  # where ms and speedup count: ncnn, onnx, openvino, torchscript or tensorrt
    precision: LatencyPrecision = "fp32"  # in which the network is served there: fp32, fp16 or int8
    threads: int = 1  # of the processor there
    latency_table: str = ""  # times of the layers there, by default measured once on this machine and cached
    # widths to keep: pow2 (the default), a number to be a multiple of, or none; for ms and speedup the fast ones
    round: str = ""
    round_direction: Direction = "nearest"  # up, down or nearest
    min_channels: int = 1  # fewest channels of a layer
    # highest share of the channels of layers to prune as PATTERN=SHARE, such as "model.2*=0.2"; the last match counts
    limit: tuple[str, ...] = field(default=(), metadata={"adds_up": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sr", "srb", "src", "beta_ratio", "scale_rate"):
            value = getattr(self, name)
            if value not in (None, AUTO) and not 0 <= value < float("inf"):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value}: expected 0 or a positive number, such as 0.001")
        if not 0 < self.aim < 1:
            raise ConfigError(f"--aim {self.aim}: expected a share between 0 and 1, such as 0.5")
        if self.is_auto:
            self._check_auto()
        if self.evolve:
            raise ConfigError("--evolve is not for sparsity training; search hyper-parameters with train.py")

    def _check_auto(self) -> None:
        """Refuse settings with which channels cannot be chosen, or something else draws on their scales."""
        if self.sparsity != "bn":
            raise ConfigError(f"--sr auto fades scales of batch norms, not {self.sparsity}; leave --sparsity out")
        if not self.weights and not self.resume:
            raise ConfigError("--sr auto chooses among channels that have learnt something; give trained --weights")
        self.choice(self.weights or "weights.pt")

    def choice(self, weights: str) -> PruneConfig:
        """Return the settings of the choice of channels under `--sr auto`."""
        return PruneConfig(
            weights=weights,
            percent=self.percent,
            target=self.target,
            runtime=self.runtime,
            precision=self.precision,
            threads=self.threads,
            latency_table=self.latency_table,
            criterion="fisher",
            shortcuts=self.shortcuts,
            round=self.round,
            round_direction=self.round_direction,
            min_channels=self.min_channels,
            limit=self.limit,
            data=self.data,
            img_size=self.test_size,
            batch_size=self.batch_size,
        )

    @property
    def is_auto(self) -> bool:
        """Whether channels are chosen first, and then fade."""
        return self.st and self.sr == AUTO

    @property
    def strengths(self) -> Strengths:
        """How hard each kind of parameter is drawn by a penalty."""
        if not self.st or self.sr == AUTO:
            return Strengths()
        if self.sparsity == "mixed":
            return Strengths(scale=self.srb, shift=self.beta_ratio * self.srb, kernel=self.src)
        if self.sparsity == "kernel":
            return Strengths(kernel=1e-5 if self.sr is None else self.sr)
        scale = 1e-3 if self.sr is None else self.sr
        return Strengths(scale=scale, shift=self.beta_ratio * scale)
