"""Plots of RePr: filters that were off in each stage, and a metric over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from utils.plots.colors import line_color
from utils.plots.save import save_figure

# Largest height of a map in inches, so that networks of thousands of filters fit.
_MAX_HEIGHT = 40.0


def plot_filter_map(
    widths: Mapping[str, int], stages: Sequence[Mapping[str, Sequence[int]]], path: str | Path
) -> None:
    """Plot a row per filter and a column per stage, dark where the filter was off.

    Args:
        widths: Number of filters of each layer, in order.
        stages: Indices of the filters that were off, by layer, for each stage.
        path: PNG to write.
    """
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    is_off = np.zeros((sum(widths.values()), len(stages)))
    for column, stage in enumerate(stages):
        for name, rows in stage.items():
            is_off[starts[name] + np.array(rows, dtype=np.int64), column] = 1
    height = min(_MAX_HEIGHT, 2 + max(0.22 * len(widths), 0.01 * len(is_off)))
    figure = Figure(figsize=(4 + 0.5 * len(stages), height), layout="constrained")
    axes = figure.subplots()
    axes.imshow(is_off, aspect="auto", interpolation="nearest", cmap=ListedColormap(["0.9", "tab:blue"]))
    for start in list(starts.values())[1:]:
        axes.axhline(start - 0.5, color="white", linewidth=0.8)
    axes.set_xticks(range(len(stages)), [str(number + 1) for number in range(len(stages))])
    axes.set_yticks([starts[name] + (width - 1) / 2 for name, width in widths.items()], list(widths), fontsize=7)
    axes.set(xlabel="stage with filters off")
    axes.set_title(f"{is_off.mean():.0%} of filters off (blue)", fontsize=10)
    save_figure(figure, path)


def plot_stages(
    curve: Mapping[int, float], spans: Sequence[tuple[int, int | None]], path: str | Path, *, what: str
) -> None:
    """Plot a metric over the epochs, with the stages with filters off shaded.

    Args:
        curve: Metric by epoch, from 0.
        spans: First epoch of each stage, and the first after it; None if the run ended before.
        path: PNG to write.
        what: Name of the metric.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    epochs = sorted(curve)
    for number, (start, end) in enumerate(spans):
        label = "filters off" if number == 0 else None
        axes.axvspan(start + 0.5, (epochs[-1] + 1 if end is None else end) + 0.5, color="0.88", label=label)
    axes.plot([epoch + 1 for epoch in epochs], [curve[epoch] for epoch in epochs], marker=".", color=line_color(0))
    axes.set(xlabel="epoch", ylabel=what)
    axes.grid(alpha=0.3)
    if spans:
        axes.legend()
    save_figure(figure, path)
