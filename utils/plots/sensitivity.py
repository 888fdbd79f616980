"""Plot of the loss of accuracy when one layer alone is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.plots.colors import line_color
from utils.plots.save import save_figure


def plot_sensitivity(losses: Mapping[int, Mapping[str, float]], path: str | Path, *, metric: str) -> None:
    """Plot a bar per layer and number of bits.

    Args:
        losses: Loss of the metric by bits, then by layer in order; the same layers for all bits.
        path: PNG to write.
        metric: Name of the metric.
    """
    layers = list(next(iter(losses.values())))
    figure = Figure(figsize=(max(9, 0.2 * len(layers)), 6), layout="constrained")
    axes = figure.subplots()
    places, width = np.arange(len(layers)), 0.8 / len(losses)
    for number, bits in enumerate(sorted(losses)):
        shifts = (number - (len(losses) - 1) / 2) * width
        heights = [losses[bits][layer] for layer in layers]
        axes.bar(places + shifts, heights, width, color=line_color(number), label=f"{bits} bits")
    axes.axhline(0, color="0.3", linewidth=0.6)
    axes.set_xticks(places, layers, rotation=90, fontsize=5 if len(layers) > 40 else 8)
    axes.set(ylabel=f"{metric} lost with this layer alone quantised", xlim=(-0.7, len(layers) - 0.3))
    axes.legend()
    save_figure(figure, path)
