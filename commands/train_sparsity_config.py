"""The settings of train_sparsity.py."""

from __future__ import annotations

from dataclasses import dataclass

from commands.train_config import TrainConfig
from pruning.choices import Shortcuts, Sparsity
from pruning.sparsity.settings import Strengths
from utils.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SparsityConfig(TrainConfig):
    """Train a detector so that whole channels fall to zero and can be pruned."""

    st: bool = True  # --no-st trains plainly, without sparsity
    sparsity: Sparsity = "bn"  # what is drawn to zero: bn, residual, kernel, mixed
    sr: float | None = None  # strength; by default 1e-3 for bn and residual, 1e-5 for kernel
    srb: float = 5e-4  # strength on batch-norm scales for mixed
    src: float = 1e-5  # strength on convolution weights for mixed
    beta_ratio: float = 10.0  # strength on batch-norm shifts, as a multiple of that on the scales
    scale_rate: float = 1.0  # learning rate of batch-norm scales, as a multiple; above 1 suits short runs
    decay: bool = True  # --no-decay keeps the strength; else it falls to a tenth over the run
    shortcuts: Shortcuts = "skip"  # channels that shortcuts join: skip leaves them dense, tied prunes them together
    aim: float = 0.5  # share of channels you mean to cut; the advice of each epoch is for it

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sr", "srb", "src", "beta_ratio", "scale_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value}: expected 0 or a positive number, such as 0.001")
        if not 0 < self.aim < 1:
            raise ConfigError(f"--aim {self.aim}: expected a share between 0 and 1, such as 0.5")
        if self.evolve:
            raise ConfigError("--evolve is not for sparsity training; search hyper-parameters with train.py")

    @property
    def strengths(self) -> Strengths:
        """How hard each kind of parameter is drawn."""
        if not self.st:
            return Strengths()
        if self.sparsity == "mixed":
            return Strengths(scale=self.srb, shift=self.beta_ratio * self.srb, kernel=self.src)
        if self.sparsity == "kernel":
            return Strengths(kernel=1e-5 if self.sr is None else self.sr)
        scale = 1e-3 if self.sr is None else self.sr
        return Strengths(scale=scale, shift=self.beta_ratio * scale)
