"""The picture of the frontier: mAP over milliseconds, a panel for each precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.frontier_curve import Point, envelope
from utils.plots.save import label_text, save_figure

# Two families of colours: greys and blues for what one could take instead, warm ones for ours.
_OTHERS, _OURS = (
    ("0.25", "tab:blue", "0.6", "tab:cyan", "tab:olive"),
    ("tab:red", "tab:orange", "tab:purple", "tab:pink", "tab:brown", "gold"),
)


def plot_frontier(points: Sequence[Point], path: Path, *, title: str) -> None:
    """Plot every line of the points, the envelope of the alternatives, and a bar of one deviation between seeds."""
    precisions = list(dict.fromkeys(point.precision for point in points))
    figure = Figure(figsize=(1 + 5.5 * len(precisions), 5.2), layout="constrained")
    panels = figure.subplots(1, len(precisions), sharex=True, sharey=True, squeeze=False)[0]
    colors = _colors(points)
    for axes, precision in zip(panels, precisions, strict=True):
        _panel(axes, [point for point in points if point.precision == precision], points, colors=colors)
        axes.set(title=precision, xlabel="ms on ncnn, one thread (log)")
        axes.grid(which="both", alpha=0.25)
    panels[0].set_ylabel("mAP50-95, mean of val and test")
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_formatter(ScalarFormatter())
    panels[0].xaxis.set_minor_formatter(ScalarFormatter() if _is_narrow(points) else NullFormatter())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.suptitle(title)
    save_figure(figure, path)


def _panel(axes: Any, own: Sequence[Point], points: Sequence[Point], *, colors: dict[str, str]) -> None:
    """Draw the lines of one precision."""
    precision = own[0].precision
    corners = envelope([point for point in points if not point.is_ours and point.precision in (precision, "fp32")])
    if corners:
        slowest = max(point.ms for point in points)
        xs, ys = [corner.ms for corner in corners], [corner.score for corner in corners]
        axes.plot([*xs, max(slowest, xs[-1])], [*ys, ys[-1]], color="0.85", linewidth=5, label="best alternative")
    for line, color in colors.items():
        # One that has no point in this panel still stands in the legend, which is made of the first panel.
        found = sorted((point for point in own if point.line == line), key=lambda point: point.ms)
        axes.errorbar(
            [point.ms for point in found],
            [point.score for point in found],
            yerr=[point.deviation or 0.0 for point in found],
            color=color,
            marker="o" if line.startswith("ours") else "s",
            linestyle="-" if line.startswith("ours") else "--",
            markersize=5,
            capsize=2,
            label=label_text(line),
        )


def _colors(points: Sequence[Point]) -> dict[str, str]:
    """Return a colour for each line, ours last."""
    lines = list(dict.fromkeys(point.line for point in points))
    ours = [line for line in lines if line.startswith("ours")]
    others = [line for line in lines if line not in ours]
    return {
        line: palette[place % len(palette)]
        for own, palette in ((others, _OTHERS), (ours, _OURS))
        for place, line in enumerate(own)
    }


def _is_narrow(points: Sequence[Point]) -> bool:
    """Return whether there may be no power of ten to label the axis with."""
    times = [point.ms for point in points]
    return max(times) < 10 * min(times)
