"""Read limits of layers: the highest share of their channels to prune, by pattern of their paths."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.errors import ConfigError


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
