"""Settings of the choice of channels to prune, and limits of layers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pruning.choices import CriterionName, Shortcuts
from pruning.selection.latency import LatencyTable
from pruning.selection.rounding import Rounding
from pruning.selection.targets import Target
from utils.errors import ConfigError

ALL = "all"


DEFAULT_PERCENT = 0.5


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """Settings of the choice of channels.

    Attributes:
        percent: Share of the candidates below the threshold; None for the default, or if `target` decides.
        criterion: Criterion that rates the importance of channels.
        bn_percent, conv_percent: Shares below the thresholds of scales and of kernels, if both decide together.
        drop_bottlenecks: Shortcut bottlenecks to remove: "all", or their paths.
        shortcuts: Whether channels that shortcuts join are kept ("skip") or pruned together ("tied").
        rounding: Rounding of the widths to keep.
        min_channels: Fewest channels of a layer to keep.
        balance: Least width of a layer, as a share of that which it would have if all layers kept the same share of
            their channels: 0 leaves widths to importance, 1 cuts every layer alike. Only with `target`.
        target: Highest cost of the pruned network, in place of a share.
        cost_power: Power of a channel's cost by which its importance is divided.
        latency: Times of the layers on a runtime, for a target in milliseconds.
        has_fast_widths: Whether widths are those that the latency table found fast, in place of `rounding`.
        protect: Patterns of paths of layers that are not pruned.
        limits: Highest share of the channels of layers to prune, by pattern of their paths; the last match counts.
        strict: Whether to raise an error, rather than keep `min_channels`, if a layer would keep fewer.
        image_chw: Channels, height and width of the image that multiply-adds are counted for.
        trace_chw: Image size to trace the network with, as in `ChannelGraph.of`.
        seed: Seed of the random criterion.
    """

    percent: float | None = None
    criterion: CriterionName = "bn_gamma"
    bn_percent: float | None = None
    conv_percent: float | None = None
    drop_bottlenecks: tuple[str, ...] = ()
    shortcuts: Shortcuts = "skip"
    rounding: Rounding
    min_channels: int = 1
    balance: float = 0.0
    target: Target | None = None
    cost_power: float = 0.0
    latency: LatencyTable | None = None
    has_fast_widths: bool = False
    protect: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)
    strict: bool = False
    image_chw: tuple[int, int, int] = (3, 640, 640)
    trace_chw: tuple[int, int, int] | None = None
    seed: int = 0

    @property
    def is_mixed(self) -> bool:
        """Whether scales and kernels decide together."""
        return self.bn_percent is not None or self.conv_percent is not None


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """Read `PATTERN=SHARE`: the highest share of the channels of matching layers to prune, by pattern.

    Raises:
        ConfigError: A text has another form, or its share is outside 0 to 1.
    """
    limits: dict[str, float] = {}
    for text in texts:
        pattern, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not pattern or not 0 <= share <= 1:
            raise ConfigError(f'--limit {text}: expected a pattern and a share from 0 to 1, such as "model.2*=0.2"')
        limits.pop(pattern, None)  # what is given later counts as the later one
        limits[pattern] = share
    return limits


def limits_per_round(texts: Sequence[str], *, rounds: int) -> tuple[str, ...]:
    """Return limits that reach the given ones after so many cuts, each of what the one before has left."""
    if rounds == 1:
        return tuple(texts)
    shares = {pattern: 1 - (1 - share) ** (1 / rounds) for pattern, share in parse_limits(texts).items()}
    # Rounded down, so that the last cut keeps to the limit.
    return tuple(f"{pattern}={math.floor(share * 1e6 + 1e-3) / 1e6:g}" for pattern, share in shares.items())
