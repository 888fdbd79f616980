"""Plot what a network loses by a change to one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from utils.plots.colors import line_color
from utils.plots.save import save_figure


def plot_layer_losses(losses: Mapping[str, Mapping[str, float]], path: str | Path, *, what: str) -> None:
    """Plot a bar per layer and change.

    Args:
        losses: Loss by change, such as "4 bits", then by layer; a change that leaves layers out has no bars there.
        path: PNG to write.
        what: Quantity that is lost, for the label of the axis.
    """
    layers = list(dict.fromkeys(layer for by_layer in losses.values() for layer in by_layer))
    figure = Figure(figsize=(max(9, 0.2 * len(layers)), 6), layout="constrained")
    axes = figure.subplots()
    places, width = np.arange(len(layers)), 0.8 / len(losses)
    for number, (change, by_layer) in enumerate(losses.items()):
        shifts = (number - (len(losses) - 1) / 2) * width
        heights = [by_layer.get(layer, 0.0) for layer in layers]
        axes.bar(places + shifts, heights, width, color=line_color(number), label=change)
    axes.axhline(0, color="0.3", linewidth=0.6)
    axes.set_xticks(places, layers, rotation=90, fontsize=5 if len(layers) > 40 else 8)
    axes.set(ylabel=what, xlim=(-0.7, len(layers) - 0.3))
    axes.legend()
    save_figure(figure, path)
