"""The plot results.png: every column of results.csv over the epochs."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.errors import DataError
from utils.plots.colors import line_color
from utils.plots.save import save_figure

Array = np.ndarray[Any, Any]


def plot_results(csv_path: str | Path, png_path: str | Path, *, best_epoch: int | None = None) -> None:
    """Plot each column of a results.csv in a separate panel.

    Args:
        csv_path: CSV with a header and one row per epoch. The column "epoch", else the row index, gives the x axis
            (counted from 0 in the file, drawn from 1). Cells that are empty or not numbers leave a gap.
        png_path: PNG to write.
        best_epoch: Epoch to mark in every panel, counted from 0; None for no mark.

    Raises:
        DataError: The file is missing or contains no epoch.
    """
    columns = _read_columns(Path(csv_path))
    epochs = columns.pop("epoch", None)
    if epochs is None:
        epochs = np.arange(len(next(iter(columns.values()))), dtype=float)
    epochs = epochs + 1  # the file counts from 0, like YOLOv5's; messages count from 1
    width = min(5, max(1, len(columns)))
    height = max(1, math.ceil(len(columns) / width))
    figure = Figure(figsize=(3 * width, 2.4 * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False).ravel()
    for number, (panel, (name, values)) in enumerate(zip(panels, columns.items(), strict=False)):
        panel.plot(epochs, values, marker=".", markersize=4, linewidth=1.5, color=line_color(number))
        if best_epoch is not None:
            is_best = epochs == best_epoch + 1
            panel.axvline(best_epoch + 1, color="0.4", linewidth=0.8, linestyle="--")
            panel.plot(epochs[is_best], values[is_best], "k*", markersize=9)
        panel.set_title(name, fontsize=10)
        panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        panel.grid(alpha=0.3)
    for panel in panels[len(columns) :]:
        panel.set_axis_off()
    figure.supxlabel("epoch", fontsize=10)
    save_figure(figure, png_path)


def _read_columns(path: Path) -> dict[str, Array]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row] or [[]]
    except OSError as error:
        raise DataError(f"results file {path} cannot be read: {error.strerror}; check the path") from error
    if not header or not rows:
        raise DataError(f"results file {path} contains no epoch; train for at least one")
    # A row truncated by a killed run is padded, not refused.
    table = np.array([[_number(cell) for cell in (row + [""] * len(header))[: len(header)]] for row in rows])
    return {name: table[:, column] for column, name in enumerate(header)}


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
