"""Plots of sparsity and pruning: scales over epochs, channels kept, and the cliff of mAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.plots.save import save_figure

Array = np.ndarray[Any, Any]

# Of more epochs than this, only some are shown, the first and the last always.
_MAX_RIDGES = 40
_OVERLAP = 2.5


def plot_ridge(counts: Array, edges: Array, path: str | Path, *, what: str) -> None:
    """Plot one histogram per epoch, the first at the back.

    Args:
        counts: Channels per bin (epochs + 1, bins), the start of training first.
        edges: Edges (bins + 1,) of the bins.
        path: PNG to write.
        what: Quantity that is counted, for the label of the axis.
    """
    rows = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _MAX_RIDGES)).round().astype(int))
    centres = (edges[:-1] + edges[1:]) / 2
    # The square root, because at the end nearly all channels are in the first bin.
    heights = np.sqrt(counts[rows]) / max(1.0, float(np.sqrt(counts[rows]).max())) * _OVERLAP
    figure = Figure(figsize=(9, 0.16 * len(rows) + 3), layout="constrained")
    axes = figure.subplots()
    for place, height in enumerate(heights):
        # The start at the top and at the back.
        base = len(rows) - 1 - place
        color = (0.2 + 0.6 * place / max(1, len(rows) - 1), 0.35, 0.7 - 0.5 * place / max(1, len(rows) - 1))
        axes.fill_between(centres, base, base + height, color=color, alpha=0.8, zorder=place, linewidth=0)
        axes.plot(centres, base + height, color="white", linewidth=0.6, zorder=place)
    shown = np.linspace(0, len(rows) - 1, min(len(rows), 10)).round().astype(int)
    axes.set_yticks(len(rows) - 1 - shown, ["start" if rows[i] == 0 else str(rows[i]) for i in shown])
    axes.set(xlabel=f"{what} of the channels that may be pruned", ylabel="after epoch", xlim=(0, edges[-1]))
    axes.set_title("channels approaching zero (height: square root of their number)", fontsize=10)
    save_figure(figure, path)


def plot_kept(widths: Mapping[str, tuple[int, int]], path: str | Path) -> None:
    """Plot a bar per layer: channels before, and channels kept.

    Args:
        widths: Channels before and after by layer, in order.
        path: PNG to write.
    """
    figure = Figure(figsize=(max(9, 0.16 * len(widths)), 6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(widths))
    before, after = np.array(list(widths.values()), dtype=np.float64).T
    axes.bar(places, before, color="0.85", label=f"before: {before.sum():.0f}")
    axes.bar(places, after, color="tab:blue", label=f"kept: {after.sum():.0f}")
    axes.set_xticks(places, list(widths), rotation=90, fontsize=5 if len(widths) > 40 else 8)
    axes.set(ylabel="output channels", xlim=(-0.7, len(widths) - 0.3))
    axes.legend()
    save_figure(figure, path)


def plot_scan(
    percents: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    path: str | Path,
    *,
    recommended: float,
    limit: float,
) -> None:
    """Plot scores right after pruning over the share of channels pruned.

    Args:
        percents: Shares tried, in [0, 1), ascending.
        scores: Values per share, by name of the metric.
        path: PNG to write.
        recommended: Recommended share.
        limit: Share above which a layer would lose all its channels.
    """
    figure, axes = _scores_over_shares(percents, scores, when="before any fine-tuning")
    axes.set_ylim(0, None)
    axes.axvline(recommended, color="tab:green", label=f"recommended {recommended:.0%}")
    axes.axvline(limit, color="tab:red", linestyle="--", label=f"a layer would be empty above {limit:.0%}")
    axes.legend()
    save_figure(figure, path)


def plot_scores_over_shares(
    shares: Sequence[float], scores: Mapping[str, Sequence[float]], path: str | Path, *, when: str
) -> None:
    """Plot scores over the share of channels pruned.

    Args:
        shares: Shares, in [0, 1), ascending.
        scores: Values per share, by name of the metric.
        path: PNG to write.
        when: Moment at which the scores were measured, for the label of the axis.
    """
    figure, axes = _scores_over_shares(shares, scores, when=when)
    axes.legend()
    save_figure(figure, path)


def _scores_over_shares(
    shares: Sequence[float], scores: Mapping[str, Sequence[float]], *, when: str
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    for name, values in scores.items():
        axes.plot(shares, values, marker="o", markersize=4, label=name)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set(xlabel=f"share of channels pruned, {when}", ylabel=", ".join(scores))
    axes.grid(alpha=0.3)
    return figure, axes
