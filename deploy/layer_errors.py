"""The cost of rounding, layer by layer, in a run folder: as JSON, as a picture, and as a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from quantization.layer_errors import LayerError
from utils.plots.colors import line_color
from utils.plots.save import label_text, save_figure
from utils.storage.files import write_json

# Beginning of the names of the files.
LAYERS_NAME = "layers"
# Layers named in the lines for people.
_MOST_NAMED = 5


def write_layer_errors(errors: Sequence[LayerError], folder: Path, *, name: str) -> str:
    """Write NAME.json and NAME.png, and return the layers that cost most, one line each.

    Args:
        errors: One for each rounded layer, in execution order.
        folder: Run folder.
        name: Name of the files, such as layers_ncnn.
    """
    write_json(folder / f"{name}.json", [asdict(error) for error in errors])
    if not errors:
        return "no layer is rounded"
    _plot(errors, folder / f"{name}.png")
    worst = sorted(errors, key=lambda error: -error.share)[:_MOST_NAMED]
    width = max(len(error.layer) for error in worst)
    lines = [
        f"  {error.layer:<{width}}  {error.share:4.0%} of the loss, result off by {error.error:.1%}, "
        f"reads {error.low:.2f} to {error.high:.2f}, keeps {error.kept_low:.2f} to {error.kept_high:.2f}"
        for error in worst
    ]
    return "\n".join([f"rounding costs most in (all layers in {folder / name}.json and .png):", *lines])


def _plot(errors: Sequence[LayerError], path: Path) -> None:
    """Plot the share of the loss, the error, and the ranges of each layer, one below the other."""
    figure = Figure(figsize=(max(9.0, 0.2 * len(errors)), 9), layout="constrained")
    of_loss, of_error, of_range = figure.subplots(3, 1, sharex=True)
    places = np.arange(len(errors))
    of_loss.bar(places, [100 * error.share for error in errors], 0.8, color=line_color(0))
    of_loss.set(ylabel="share of the loss, %", title="rounded alone")
    of_error.bar(places, [100 * error.error for error in errors], 0.8, color=line_color(1))
    of_error.set(ylabel="result is off by, %", title="all layers rounded")
    of_range.vlines(
        places,
        [e.low for e in errors],
        [e.high for e in errors],
        color="0.75",
        linewidth=5,
        label="values that it reads",
    )
    of_range.vlines(
        places,
        [e.kept_low for e in errors],
        [e.kept_high for e in errors],
        color=line_color(2),
        linewidth=1.5,
        label="range of the integers",
    )
    of_range.set(ylabel="value", yscale="symlog", xlim=(-0.7, len(errors) - 0.3))
    of_range.legend()
    names = [label_text(error.layer) for error in errors]
    of_range.set_xticks(places, names, rotation=90, fontsize=5 if len(errors) > 40 else 8)
    save_figure(figure, path)
